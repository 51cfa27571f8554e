package install

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func (i *Installer) folder(site Site) folder {
	return folder{dir: filepath.Join(i.o.StateDir, site.Store.Name), d: disk{gate: func(do, path string) error { return i.o.Before(Op{Do: do, Path: path}) }}}
}

// Record is the file that keeps what CSM did with a store. `csm-agent release` changes it beside a running agent.
func (i *Installer) Record(site Site) string { return i.folder(site).path("record.json") }

func checkNow(p pair, now time.Time) []keystore.Problem {
	return keystore.Check(p.key, p.anchors, keystore.Expect{Now: now})
}

// Facts is the store as it is on disk, for Hello and Report. It reads, and never fails: what is wrong is in the detail.
func (i *Installer) Facts(site Site) *agentv1.StoreFacts {
	s := site.Store
	f := &agentv1.StoreFacts{Store: s.Name, KeystorePath: s.KeystorePath, TruststorePath: s.TruststorePath, Format: protoFormat(s.Format)}
	for _, p := range s.Ports {
		f.Ports = append(f.Ports, p.Proto())
	}
	if site.Instance != nil {
		names := site.Instance.RequiredNamesFor(s.Name)
		f.Required = &agentv1.Names{Dns: names.DNS, Ips: names.IPStrings()}
	}
	t := &transaction{i: i, site: site}
	disk, openErr := t.open()
	if disk.keystore.exists {
		f.KeystoreSha256 = unhex(disk.keystore.sum)
	}
	if disk.truststore.exists {
		f.TruststoreSha256 = unhex(disk.truststore.sum)
	}
	if disk.key != nil && disk.key.Leaf() != nil {
		l := disk.leaf()
		f.LeafSha256, f.NotAfter = l[:], timestamppb.New(disk.key.Leaf().NotAfter)
	}
	for n, a := range disk.anchors {
		if n == 256 { // the wire's bound
			break
		}
		id := fingerprint(a)
		f.Anchors = append(f.Anchors, id[:])
	}
	folder := i.folder(site)
	folder.keptFacts(t, disk, f)
	r, err := folder.record()
	j, jerr := folder.journal()
	f.State, f.Generation, f.Detail = stateOf(r, j, disk)
	switch {
	case err != nil || jerr != nil:
		f.State, f.Detail = agentv1.InstallState_INSTALL_STATE_FAILED, clip(firstError(err, jerr).Error())
	case openErr != nil && f.Detail == "":
		f.Detail = clip(openErr.Error())
	}
	return f
}

func unhex(s string) []byte {
	b, _ := hex.DecodeString(s)
	return b
}

func firstError(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

// stateOf judges by the disk first: a record tells what CSM did, not what lies there now.
func stateOf(r *record, j *journal, disk pair) (agentv1.InstallState, uint64, string) {
	switch {
	case j != nil:
		return agentv1.InstallState_INSTALL_STATE_MOVING, generationOf(r), ""
	case r != nil && r.Contested:
		return agentv1.InstallState_INSTALL_STATE_CONTESTED, r.Generation, r.Detail
	case r != nil && r.current().same(disk.snapshot(0)) && disk.keystore.exists:
		return r.State, r.Generation, r.Detail
	case r != nil && len(r.History) > 0 && !r.Theirs:
		return agentv1.InstallState_INSTALL_STATE_FAILED, r.Generation, "store-changed: the files are not as CSM left them"
	case disk.keystore.exists || disk.truststore.exists:
		return agentv1.InstallState_INSTALL_STATE_FOREIGN, 0, ""
	}
	return agentv1.InstallState_INSTALL_STATE_ABSENT, 0, ""
}

func generationOf(r *record) uint64 {
	if r == nil {
		return 0
	}
	return r.Generation
}

// Last is how the last move on this store ended, for a report that was lost with the process; nil when there was none.
func (i *Installer) Last(site Site) (*Outcome, error) {
	r, err := i.folder(site).record()
	if err != nil || r == nil {
		return nil, err
	}
	return r.Last, nil
}

// Certificate is the node's own certificate as it lies in the store: what the agent shows to its neighbours' ports.
func Certificate(s *cassandra.Store) (*tls.Certificate, error) {
	t := &transaction{site: Site{Store: s}}
	p, err := t.open()
	if err != nil {
		return nil, err
	}
	c := p.certificate()
	if c == nil {
		return nil, fault.New(fault.NotFound, "no-store", "there is no keystore at %s yet", s.KeystorePath).Do("wait for the first install")
	}
	return c, nil
}

// Trusted are the anchors in the store's truststore; none when it cannot be read.
func Trusted(s *cassandra.Store) []*x509.Certificate {
	t := &transaction{site: Site{Store: s}}
	p, _ := t.open()
	return p.anchors
}

func protoFormat(f keystore.Format) agentv1.StoreFormat {
	switch f {
	case keystore.PKCS12:
		return agentv1.StoreFormat_STORE_FORMAT_PKCS12
	case keystore.JKS:
		return agentv1.StoreFormat_STORE_FORMAT_JKS
	case keystore.PEM:
		return agentv1.StoreFormat_STORE_FORMAT_PEM
	}
	return agentv1.StoreFormat_STORE_FORMAT_UNSPECIFIED
}
