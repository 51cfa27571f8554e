//go:build linux

package runbooks

import (
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// joinsThatWait: hosts whose certificates come from another CA ask to join under names that its rule does not cover.
func joinsThatWait(o operator) {
	o.t.Helper()
	ca := handmade.New(o.t)
	root := filepath.Join(o.p.Dir, "corporate-root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root().Raw}), 0o600); err != nil {
		o.t.Fatal(err)
	}
	o.expect("csm trust anchor-add prod-eu --file "+root+" --owner 'PKI team' --reason 'ring of today' --expires 720h --network 10.1.0.0/16 --first-nodes 2", 0)
	waits := regexp.MustCompile(`(?m)^(\S+)\s+prod-eu/(n[89])\s+pending`)
	for name, number := range map[string]int{"n8": 5, "n9": 6} {
		a := o.agent(name, number)
		a.Node.Format, a.Node.Password = "PKCS12", "changeit-1"
		ca.Equip(a.Node)
		config, err := os.ReadFile(a.Config)
		if err != nil {
			o.t.Fatal(err)
		}
		text := regexp.MustCompile(`(?m)^join: .*$`).ReplaceAllString(string(config), "join: {method: possession, node: "+name+"}")
		if err := os.WriteFile(a.Config, []byte(text), 0o600); err != nil {
			o.t.Fatal(err)
		}
		if err := a.Start(); err != nil {
			o.t.Fatal(err)
		}
		list := o.expect("csm request list", 0, "prod-eu/"+name, "pending", "the rule does not cover")
		found := waits.FindStringSubmatch(list)
		if found == nil || found[2] != name {
			o.t.Fatalf("who waits: %s", list)
		}
		o.expect("csm node list --pending", 0, name)
		o.expect("csm request get "+found[1], 0, "the rule does not cover "+a.Node.Address.String(), "possession")
		if name == "n8" {
			o.expect("csm request approve "+found[1]+" --reason 'change 4711' --yes", 0, "approved")
			o.heardOf(a, `"joined"`)
			o.expect("csm node get prod-eu/n8", 0, "active")
			a.Process.Kill()
		} else {
			o.expect("csm request deny "+found[1], 2, "say why")
			o.expect("csm request deny "+found[1]+" --reason 'not ours' --yes", 0, "denied")
			o.heardOf(a, "denied this join", "not ours")
			o.expect("csm node get prod-eu/n9", 4)
			<-a.Process.Done() // who is refused ends
		}
	}
}

// heardOf waits until the agent's log says it.
func (o operator) heardOf(a *plane.Agent, words ...string) {
	o.t.Helper()
	if err := plane.Eventually(o.t.Context(), 60*time.Second, func() error {
		log := process.Tail(a.Log(), 40)
		for _, w := range words {
			if !strings.Contains(log, w) {
				return fmt.Errorf("%q is not in the log: %s", w, log)
			}
		}
		return nil
	}); err != nil {
		o.t.Fatal(err)
	}
}
