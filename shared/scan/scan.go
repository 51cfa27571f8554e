// Package scan finds certificates in files (PEM, DER, PKCS#12, JKS) and says what is weak about each. It only reads; it
// keeps no state, and never returns or logs a private key: it reports that there is one.
//
// It is bounded in files, bytes, depth and certificates. Symbolic links are never followed out of the roots: a link is
// read only if its target lies within one of them, and each file is read once.
package scan

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// Defaults and bounds of a scan.
const (
	MaxFiles        = 20_000
	MaxDepth        = 16
	MaxCertificates = 2000
)

// Options of a scan. The zero value of each bound means its default.
type Options struct {
	Now time.Time
	// Near is how long before its end a certificate counts as near expiry.
	Near time.Duration
	// Passwords tried on PKCS#12 and JKS files, in order. An empty one is always tried.
	Passwords [][]byte
	MaxFiles  int
	// Skip, if set, leaves out files and folders by their path.
	Skip func(path string) bool
}

// Found is one certificate in one place.
type Found struct {
	Path string
	// Entry is the alias inside a store, or the index inside a file, counted from 0.
	Entry         string
	Format        string // "PEM", "DER", "PKCS12", "JKS"
	DER           []byte
	Certificate   *x509.Certificate
	HasPrivateKey bool
	Mode          fs.FileMode
	Owner         string
	Weak          []Weakness
}

// Result of a scan. Unread are files that look like stores and could not be opened, with the reason.
type Result struct {
	Found  []Found
	Unread []Unread
	// Truncated says that a bound was reached; the rest was not looked at.
	Truncated bool
	Files     int
}

// Unread is a file that looks like a store but gave no certificate.
type Unread struct{ Path, Reason string }

// Files looks for certificates under the roots (files or folders). Roots that do not exist are skipped. The error is that
// of the context only: whatever cannot be read is part of the result.
func Files(ctx context.Context, roots []string, o Options) (Result, error) {
	s := &scanner{o: o, seen: map[string]bool{}}
	if s.o.MaxFiles <= 0 {
		s.o.MaxFiles = MaxFiles
	}
	for _, r := range roots {
		abs, err := filepath.Abs(r)
		if err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			s.roots = append(s.roots, real)
		}
	}
	for _, r := range s.roots {
		if err := s.walk(ctx, r, 0); err != nil {
			return s.res, err
		}
	}
	sharedKeys(s.res.Found)
	return s.res, nil
}

type scanner struct {
	o     Options
	roots []string
	seen  map[string]bool
	res   Result
}

func (s *scanner) walk(ctx context.Context, path string, depth int) error {
	if err := ctx.Err(); err != nil {
		return fault.From(err)
	}
	if s.res.Truncated || s.seen[path] || s.o.Skip != nil && s.o.Skip(path) {
		return nil
	}
	s.seen[path] = true
	fi, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		real, err := filepath.EvalSymlinks(path)
		if err != nil || !s.inside(real) {
			return nil
		}
		return s.walk(ctx, real, depth+1)
	case fi.IsDir():
		if depth > MaxDepth {
			s.res.Truncated = true
			return nil
		}
		return s.folder(ctx, path, depth)
	case fi.Mode().IsRegular():
		if s.res.Files++; s.res.Files > s.o.MaxFiles {
			s.res.Truncated = true
			return nil
		}
		s.file(path, fi)
	}
	return nil
}

func (s *scanner) folder(ctx context.Context, path string, depth int) error {
	d, err := os.Open(path)
	if err != nil {
		s.unread(path, "the folder cannot be opened")
		return nil
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(256)
		for _, e := range entries {
			if werr := s.walk(ctx, filepath.Join(path, e.Name()), depth+1); werr != nil {
				return werr
			}
		}
		if err != nil || len(entries) == 0 {
			return nil
		}
	}
}

func (s *scanner) inside(path string) bool {
	for _, r := range s.roots {
		if path == r || strings.HasPrefix(path, strings.TrimSuffix(r, string(filepath.Separator))+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

func (s *scanner) unread(path, reason string) {
	if len(s.res.Unread) < 200 {
		s.res.Unread = append(s.res.Unread, Unread{path, reason})
	}
}

var extensions = map[string]bool{".pem": true, ".crt": true, ".cer": true, ".der": true, ".key": true, ".p12": true,
	".pfx": true, ".jks": true, ".keystore": true, ".truststore": true, ".bundle": true, ".ca": true, ".pkcs12": true, ".ks": true, ".ts": true}

// looks decides by name or first bytes whether a file is worth reading as a whole.
func looks(path string, head []byte) bool {
	base := filepath.Base(path)
	if extensions[strings.ToLower(filepath.Ext(base))] || base == ".keystore" || base == ".truststore" {
		return true
	}
	return keystore.Sniff(head) != "" || bytes.HasPrefix(head, []byte{0x30, 0x82})
}

func (s *scanner) file(path string, fi fs.FileInfo) {
	if fi.Size() == 0 || fi.Size() > keystore.MaxSize {
		return
	}
	f, err := openRegular(path)
	if err != nil {
		if extensions[strings.ToLower(filepath.Ext(path))] {
			s.unread(path, "the file cannot be opened: "+errText(err))
		}
		return
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, _ := io.ReadFull(f, head)
	if !looks(path, head[:n]) {
		return
	}
	rest, err := io.ReadAll(io.LimitReader(f, keystore.MaxSize))
	data := append(head[:n:n], rest...)
	if err != nil || len(data) > keystore.MaxSize {
		return
	}
	defer clear(data)
	found, err := s.read(data)
	if err != nil {
		s.unread(path, errText(err))
	}
	for _, x := range found {
		if len(s.res.Found) >= MaxCertificates {
			s.res.Truncated = true
			return
		}
		x.Path, x.Mode, x.Owner = path, fi.Mode().Perm(), owner(fi)
		x.DER = x.Certificate.Raw
		x.Weak = Weaknesses(x.Certificate, s.o.Now, s.o.Near)
		if x.HasPrivateKey && worldReadable(x.Mode) {
			x.Weak = append(x.Weak, Weakness{"world-readable-key", "error", fmt.Sprintf("each user of this machine can read the private key (mode %04o)", x.Mode)})
		}
		s.res.Found = append(s.res.Found, x)
	}
}

func errText(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func (s *scanner) read(data []byte) ([]Found, error) {
	switch f := keystore.Sniff(data); f {
	case keystore.PEM:
		return readPEM(data), nil
	case keystore.PKCS12, keystore.JKS:
		return s.readStore(f, data)
	}
	cs, err := x509.ParseCertificates(bytes.Clone(data)) // certificates keep pointing into what they were read from
	if err != nil {
		return nil, nil
	}
	var out []Found
	for i, c := range cs {
		out = append(out, Found{Entry: strconv.Itoa(i), Format: "DER", Certificate: c})
	}
	return out, nil
}

func readPEM(data []byte) []Found {
	var out []Found
	var keys []crypto.PublicKey
	encrypted := false
	for i := 0; ; i++ {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		switch {
		case b.Type == "CERTIFICATE" || b.Type == "TRUSTED CERTIFICATE":
			if c, err := certificate.Parse(b.Bytes); err == nil {
				out = append(out, Found{Entry: strconv.Itoa(i), Format: "PEM", Certificate: c})
			}
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			if p := publicOf(b); p != nil {
				keys = append(keys, p)
			} else {
				encrypted = true
			}
			clear(b.Bytes)
		}
	}
	for i := range out {
		for _, k := range keys {
			out[i].HasPrivateKey = out[i].HasPrivateKey || certificate.SameKey(k, out[i].Certificate.PublicKey)
		}
	}
	// A key that cannot be opened is taken for that of the first certificate beside it.
	if encrypted && len(out) > 0 {
		out[0].HasPrivateKey = true
	}
	return out
}

func publicOf(b *pem.Block) crypto.PublicKey {
	var k any
	var err error
	switch b.Type {
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if s, ok := k.(crypto.Signer); ok && err == nil {
		return s.Public()
	}
	return nil
}

func (s *scanner) readStore(f keystore.Format, data []byte) ([]Found, error) {
	var last error
	for _, p := range append(append([][]byte(nil), s.o.Passwords...), nil) {
		ks, err := keystore.DecodeKeyStore(f, data, p)
		if err == nil {
			var out []Found
			for i, c := range ks.Chain {
				out = append(out, Found{Entry: ks.Alias + "/" + strconv.Itoa(i), Format: string(f), Certificate: c, HasPrivateKey: i == 0})
			}
			for i, c := range ks.Others {
				out = append(out, Found{Entry: "other/" + strconv.Itoa(i), Format: string(f), Certificate: c})
			}
			return out, nil
		}
		cs, terr := keystore.DecodeTrustStore(f, data, p)
		if terr == nil && len(cs) > 0 {
			var out []Found
			for i, c := range cs {
				out = append(out, Found{Entry: strconv.Itoa(i), Format: string(f), Certificate: c})
			}
			return out, nil
		}
		if last == nil || !fault.HasReason(err, "wrong-password") {
			last = err
		}
	}
	return nil, last
}
