package install_test

import (
	"context"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// throwing is nodetool where the call threw.
type throwing struct{}

func (throwing) Reload(context.Context) (reload.Output, error) {
	return reload.Output{ExitCode: 2, Stderr: "error: keystore password was incorrect"}, nil
}

func TestAReloadCommandIsBelievedOnlyOfReleasesWhoseExitCodeTells(t *testing.T) {
	for version, reason := range map[string]string{"4.0.20": "reload-failed", "4.1.3": "reload-failed", "4.1.4": "proof-wrong-leaf", "5.0.8": "proof-wrong-leaf", "": "proof-wrong-leaf"} {
		w := running(t, keystore.PKCS12)
		before := w.keystoreSum()
		p := w.plan(2)
		inst := *p.Instance
		inst.Process.Version = version
		p.Instance = &inst
		o, err := w.installer(func(o *install.Options) { o.Reloader = throwing{} }).Run(context.Background(), p)
		if o.Result != rolledBack || !fault.HasReason(err, reason) || w.keystoreSum() != before {
			t.Errorf("%q: %v %v, want %s", version, o.Result, err, reason)
		}
	}
}
