package bounds

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

func check(m any) error {
	if p, ok := m.(proto.Message); ok {
		return Check(p)
	}
	return nil
}

// UnaryServer refuses a request that is out of bounds.
func UnaryServer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// StreamServer refuses each message of a stream that is out of bounds.
func StreamServer(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, serverStream{s})
}

type serverStream struct{ grpc.ServerStream }

func (s serverStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return check(m)
}

// UnaryClient refuses an answer that is out of bounds.
func UnaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
		return err
	}
	return check(reply)
}

// StreamClient refuses each message of a stream that is out of bounds.
func StreamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return clientStream{s}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s clientStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return check(m)
}
