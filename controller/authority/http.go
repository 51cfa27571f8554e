package authority

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// PKIHandler serves certificates of issuers and revocation lists to anybody over plain HTTP (both are signed; RFC 5280, 8
// warns of TLS here): GET and HEAD of /ca/{issuer}.crt and /crl/{issuer}/{shard}.crl, DER, 404 for all else.
func (s *Authorities) PKIHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ca/{file}", s.serveCertificate)
	mux.HandleFunc("GET /crl/{issuer}/{file}", s.serveCRL)
	return mux
}

func (s *Authorities) serveCertificate(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(r.PathValue("file"), ".crt")
	if !ok {
		http.NotFound(w, r)
		return
	}
	i, err := s.ByPublicID(r.Context(), id)
	if err != nil {
		refuse(w, r, err)
		return
	}
	etag := `"` + certificate.Hex(certificate.Fingerprint(i.Certificate.Raw))[:24] + `"`
	send(w, r, "application/pkix-cert", i.Certificate.Raw, etag, i.CreateTime, 24*time.Hour)
}

// maxCRLAge is how long a cache may keep a list: a revocation is seen everywhere after it.
const maxCRLAge = time.Hour

func (s *Authorities) serveCRL(w http.ResponseWriter, r *http.Request) {
	num, ok := strings.CutSuffix(r.PathValue("file"), ".crl")
	shard, err := strconv.Atoi(num)
	if !ok || err != nil || strconv.Itoa(shard) != num {
		http.NotFound(w, r)
		return
	}
	l, err := s.CRL(r.Context(), r.PathValue("issuer"), shard)
	if err != nil {
		refuse(w, r, err)
		return
	}
	age := max(0, min(maxCRLAge, l.NextUpdate.Sub(s.clock.Now())))
	w.Header().Set("Expires", l.NextUpdate.UTC().Format(http.TimeFormat))
	send(w, r, "application/pkix-crl", l.DER, l.ETag, l.ThisUpdate, age)
}

// send answers conditional requests too (RFC 9110, 13).
func send(w http.ResponseWriter, r *http.Request, kind string, body []byte, etag string, modified time.Time, age time.Duration) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("ETag", etag)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, no-transform", int(age.Seconds())))
	http.ServeContent(w, r, "", modified, strings.NewReader(string(body)))
}

func refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	if f.Code == fault.NotFound {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, f.Reason, f.Code.HTTPStatus())
}
