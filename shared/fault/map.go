package fault

import (
	"net/http"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

type mapping struct {
	http int
	exit int
	grpc codes.Code
}

var table = [...]mapping{
	Internal:        {http.StatusInternalServerError, 1, codes.Internal},
	Invalid:         {http.StatusBadRequest, 2, codes.InvalidArgument},
	Unauthenticated: {http.StatusUnauthorized, 7, codes.Unauthenticated},
	Refused:         {http.StatusForbidden, 3, codes.PermissionDenied},
	NotFound:        {http.StatusNotFound, 4, codes.NotFound},
	Unavailable:     {http.StatusServiceUnavailable, 5, codes.Unavailable},
	Stale:           {http.StatusPreconditionFailed, 6, codes.FailedPrecondition},
	Conflict:        {http.StatusConflict, 3, codes.AlreadyExists},
	Exhausted:       {http.StatusTooManyRequests, 3, codes.ResourceExhausted},
	Unknown:         {http.StatusGatewayTimeout, 5, codes.Aborted},
	Partial:         {http.StatusMultiStatus, 8, codes.Unknown},
	Running:         {http.StatusAccepted, 9, codes.Unknown},
	Differs:         {http.StatusOK, 10, codes.Unknown},
}

func (c Code) mapping() mapping {
	if int(c) < len(table) {
		return table[c]
	}
	return table[Internal]
}

// HTTPStatus is the status code of the REST answer.
func (c Code) HTTPStatus() int { return c.mapping().http }

// ExitCode is the exit code of the three programs for an error; 0 for nil.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	return From(err).Code.mapping().exit
}

const domain = "csm"

// GRPCStatus lets a handler return a fault as it is: grpc-go calls it to build the status.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Code.mapping().grpc, e.Message)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: e.Reason, Domain: domain,
		Metadata: map[string]string{"code": e.Code.String(), "remedy": e.Remedy}}}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	d, err := s.WithDetails(details...)
	if err != nil {
		return s
	}
	return d
}

// FromGRPC rebuilds the fault that a peer returned. A status without our details is mapped by its gRPC code.
func FromGRPC(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return From(err)
	}
	var ours *Error
	var after time.Duration
	for _, d := range s.Details() {
		switch info := d.(type) {
		case *errdetails.ErrorInfo:
			if info.Domain == domain && ours == nil {
				ours = &Error{Code: ParseCode(info.Metadata["code"]), Reason: info.Reason, Message: s.Message(), Remedy: info.Metadata["remedy"]}
			}
		case *errdetails.RetryInfo:
			after = max(0, info.GetRetryDelay().AsDuration())
		}
	}
	if ours != nil {
		return ours.After(after)
	}
	// The status's own message, without gRPC's "rpc error: code = … desc = " before it.
	said := func(code Code, reason, what string) *Error {
		e := New(code, reason, "%s: %s", what, plain(s.Message()))
		e.cause = err
		return e
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return said(Unavailable, "unreachable", "the other side did not answer in time").Do("check that it runs and is not overloaded; then try again")
	case codes.Unavailable, codes.Canceled:
		if strings.HasSuffix(strings.TrimSuffix(s.Message(), `"`), "handshake failed: EOF") {
			return said(Unavailable, "sent-away", "the other side closed the connection before a handshake").Do("it has no leader, goes down, or too many come at once: try another controller, and see `csm status`")
		}
		e := said(Unavailable, "unreachable", "the other side cannot be reached")
		if strings.Contains(s.Message(), "certificate") {
			return e.Do("one side does not take the other's certificate: compare both clocks, and see `csm-agent doctor` or `csm system controllers` for one that has ended")
		}
		return e.Do("check that it runs and that its port is open")
	case codes.Unauthenticated:
		return said(Unauthenticated, "unauthenticated", "not authenticated")
	case codes.InvalidArgument, codes.Unimplemented:
		return said(Invalid, "rpc-refused", "the other side does not take this request").Do("compare versions with `version`")
	case codes.ResourceExhausted:
		return said(Exhausted, "too-large", "the other side refused the size or rate")
	}
	return said(Internal, "rpc", "remote error")
}

// wrappings are what gRPC puts around the error of a connection.
var wrappings = []string{"connection error: desc = ", "error reading server preface: ", "transport: Error while dialing: ", "transport: authentication handshake failed: ",
	"last connection error: "}

// plain takes gRPC's own words off the error of the network or of TLS, which is what a person needs.
func plain(message string) string {
	for _, w := range wrappings {
		message = strings.ReplaceAll(message, w, "")
	}
	return strings.ReplaceAll(message, `"`, "")
}
