package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// adminDoor is a Unix socket in the data folder (mode 0700): who can reach it owns this controller's disk and with it its keys
// already. It takes the few commands that make administrators, so that there is a way in without one.
type adminDoor struct {
	s    *Server
	l    net.Listener
	http *http.Server
}

// adminRequest and adminResponse are what goes over the socket, as JSON.
type adminRequest struct {
	Name   string `json:"name"`
	CSR    []byte `json:"csr,omitempty"`
	Reason string `json:"reason,omitempty"`
}

type adminResponse struct {
	Chain  [][]byte `json:"chain,omitempty"`
	Bundle [][]byte `json:"bundle,omitempty"`
	Fault  *problem `json:"fault,omitempty"`
}

type problem struct {
	Code    string `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

func (s *Server) adminDoor() (*adminDoor, error) {
	path := s.id.dir.socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "admin-socket", "cannot make %s", path).Do("use a shorter data_dir: the path of a socket has at most 107 bytes")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	d := &adminDoor{s: s, l: l}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /admins", d.handle(d.add))
	mux.HandleFunc("POST /admins/revoke", d.handle(d.revoke))
	d.http = s.httpServer(mux)
	return d, nil
}

func (d *adminDoor) run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		_ = d.http.Close()
	}()
	err := ended(d.http.Serve(d.l))
	if ctx.Err() != nil {
		<-done
	}
	return err
}

const localActor = "local-administrator"

func (d *adminDoor) handle(do func(context.Context, adminRequest) (adminResponse, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req adminRequest
		var res adminResponse
		err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req)
		if err != nil {
			err = fault.Wrap(err, fault.Invalid, "bad-request", "the request cannot be read")
		} else {
			ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
			defer cancel()
			res, err = do(ctx, req)
		}
		if err != nil {
			f := fault.From(err)
			res = adminResponse{Fault: &problem{f.Code.String(), f.Reason, f.Message, f.Remedy}}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(res)
	}
}

func (d *adminDoor) add(ctx context.Context, req adminRequest) (adminResponse, error) {
	if err := resource.CheckID("admin", req.Name); err != nil {
		return adminResponse{}, err
	}
	chain, bundle, err := addAdmin(ctx, d.s.dom, d.s.in.trustDomain(), req.Name, req.CSR, localActor)
	return adminResponse{Chain: chain, Bundle: bundle}, err
}

func (d *adminDoor) revoke(ctx context.Context, req adminRequest) (adminResponse, error) {
	return adminResponse{}, d.s.dom.people.RevokeAdmin(ctx, req.Name, localActor, req.Reason)
}

// callAdminDoor sends a request to the controller that runs on this data folder.
func callAdminDoor(ctx context.Context, d dataDir, path string, req adminRequest) (adminResponse, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.socket())
		}}}
	body, err := json.Marshal(req)
	if err != nil {
		return adminResponse{}, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://controller"+path, bytes.NewReader(body))
	if err != nil {
		return adminResponse{}, err
	}
	resp, err := client.Do(hr)
	if err != nil {
		return adminResponse{}, fault.Wrap(err, fault.Unavailable, "not-running", "the controller of %s does not answer", d).
			Do("start it with `csm-controller run`, and run this command as the same user")
	}
	defer resp.Body.Close()
	var res adminResponse
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&res); err != nil {
		return res, fault.Wrap(err, fault.Internal, "bad-answer", "the controller's answer cannot be read")
	}
	if p := res.Fault; p != nil {
		return res, &fault.Error{Code: fault.ParseCode(p.Code), Reason: p.Reason, Message: p.Message, Remedy: p.Remedy}
	}
	return res, nil
}

// AdminResult says what `admin add` made.
type AdminResult struct {
	Name string `json:"name"`
	File string `json:"file"`
	Pin  string `json:"pin"`
}

// AddAdmin makes a key here, has the running controller of this data folder sign it, and writes both to out.
func AddAdmin(ctx context.Context, cfg Config, name, out string) (AdminResult, error) {
	if err := refuseExisting(out); err != nil {
		return AdminResult{}, err
	}
	key, chain, bundle, err := newAdmin(func(csr []byte) ([][]byte, [][]byte, error) {
		res, err := callAdminDoor(ctx, dataDir(cfg.DataDir), "/admins", adminRequest{Name: name, CSR: csr})
		return res.Chain, res.Bundle, err
	})
	if err != nil {
		return AdminResult{}, err
	}
	roots, err := parseAll(bundle)
	if err != nil {
		return AdminResult{}, err
	}
	own, err := parseAll(chain)
	if err != nil {
		return AdminResult{}, err
	}
	return AdminResult{Name: resource.Admin(name), File: out, Pin: pinOf(own[0], roots)}, writeAdmin(out, key, chain, roots)
}

// RevokeAdmin closes every door to an administrator.
func RevokeAdmin(ctx context.Context, cfg Config, name, reason string) error {
	_, err := callAdminDoor(ctx, dataDir(cfg.DataDir), "/admins/revoke", adminRequest{Name: name, Reason: reason})
	return err
}
