// Package helper carries requests from the agent to a small process that may do one thing which the agent may not: start
// nodetool (package reload), or end a connection (package links). systemd starts one for each request behind a socket;
// without systemd the agent starts one as its child.
//
// A request names what is meant and never how it is done: what a helper does is fixed by its own local configuration.
// Messages are bounded, answers carry the number of their request, and one request is under way at a time.
package helper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxFrame bounds a message, in bytes.
const maxFrame = 512 << 10

// message is a request, or its answer, or the fault in the place of one.
type message struct {
	ID     uint64          `json:"id"`
	Body   json.RawMessage `json:"body,omitempty"`
	Reason string          `json:"reason,omitempty"`
	Error  string          `json:"error,omitempty"`
	Remedy string          `json:"remedy,omitempty"`
}

// Serve is the helper's side: it answers requests on rw one after the other until the agent has gone, and then returns nil. do gets
// each as it came; its answer is carried even beside an error.
func Serve[Q, A any](rw io.ReadWriter, do func(Q) (A, error)) error {
	for {
		var m message
		if err := receive(rw, &m); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		a := message{ID: m.ID}
		var q Q
		err := json.Unmarshal(m.Body, &q)
		if err != nil {
			err = fault.New(fault.Refused, "helper-refused", "the request is not understood").Do("agent and helper must be of one version")
		} else {
			var answer A
			answer, err = do(q)
			body, merr := json.Marshal(answer)
			if merr != nil {
				return merr
			}
			a.Body = body
		}
		if err != nil {
			f := fault.From(err)
			a.Reason, a.Error, a.Remedy = f.Reason, f.Message, f.Remedy
		}
		if err := send(rw, a); err != nil {
			return err
		}
	}
}

// send and receive frame a JSON message by its length, big-endian uint32.
func send(w io.Writer, m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fault.New(fault.Internal, "frame-too-large", "a message of %d bytes", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive(r io.Reader, m *message) error {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > maxFrame {
		return fault.New(fault.Invalid, "frame-too-large", "a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, m)
}
