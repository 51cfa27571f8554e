//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// bareService keeps streams open and does nothing else.
type bareService struct {
	agentv1.UnimplementedAgentServiceServer
}

func (bareService) Sync(s grpc.BidiStreamingServer[agentv1.SyncRequest, agentv1.SyncResponse]) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	if err := s.Send(&agentv1.SyncResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// serveBare is the other process: gRPC over mutual TLS 1.3, as gRPC does it by itself.
func serveBare(address string) error {
	c, err := selfSigned()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})))
	agentv1.RegisterAgentServiceServer(g, bareService{})
	return g.Serve(l)
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bare"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// bareStreams is how many bare streams are opened from this process.
const bareStreams = 2000

// bare measures what a bare stream costs at its server, in bytes of resident memory.
func (b *bench) bare(ctx context.Context) (float64, error) {
	hosts, err := process.Claim(140, 1, 9641)
	if err != nil {
		return 0, err
	}
	defer hosts.Release()
	address := net.JoinHostPort(hosts.Host(1).String(), "9641")
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	server, err := process.Start(process.Spec{Name: "bare", Path: self, Args: []string{"-bare", address}, Dir: b.work, Log: filepath.Join(b.work, "bare.log")})
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	own, err := selfSigned()
	if err != nil {
		return 0, err
	}
	conf := &tls.Config{Certificates: []tls.Certificate{own}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} // the stream is measured, not the trust
	open := func() (func(), error) {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
		if err != nil {
			return nil, err
		}
		s, err := agentv1.NewAgentServiceClient(conn).Sync(ctx)
		if err == nil {
			err = s.Send(&agentv1.SyncRequest{})
		}
		if err == nil {
			_, err = s.Recv()
		}
		return func() { conn.Close() }, err
	}
	var closers []func()
	defer func() {
		for _, c := range closers {
			c()
		}
	}()
	if err := plane.Eventually(ctx, 20*time.Second, func() error {
		c, err := open()
		if err == nil {
			closers = append(closers, c)
		}
		return err
	}); err != nil {
		return 0, err
	}
	before, err := server.Usage()
	if err != nil {
		return 0, err
	}
	for range bareStreams {
		c, err := open()
		if err != nil {
			return 0, fmt.Errorf("stream %d: %w", len(closers), err)
		}
		closers = append(closers, c)
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return 0, err
	}
	after, err := server.Usage()
	return float64(after.Resident-before.Resident) / bareStreams, err
}
