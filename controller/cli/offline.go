package cli

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

var offlineRisks = []string{
	"the recovery share opens every key of the system: whoever sees it or this machine's memory can sign anything",
	"no controller records this certificate: until its entry is imported it cannot be found, listed or revoked",
	"no claim, no freeze, no proof by a neighbour: you install it yourself, and you look whether it serves",
}

// backupRisk is what a backup cannot say.
const backupRisk = "a backup knows nothing that came later: look first that no controller lives (csm doctor), and that the node was not removed, replaced or revoked since"

func (a *app) offlineIssue() *cobra.Command {
	var dir, file, share, csr, authority, region, node, out, entry string
	var validity time.Duration
	c := &cobra.Command{Use: "issue", Short: "Sign one certificate with every controller dead, from a data folder or a backup and the recovery share", Args: cobra.NoArgs,
		Long: "The last resort, when a certificate must be new before any controller can be brought back. It reads the data folder of any controller (or a copy of it),\n" +
			"or a backup where all folders are gone, opens the issuer's key by the recovery share, and signs the names that the request asks for, for 30 days at most.\n" +
			"Beside the certificate it writes an entry: import it (`csm certificate import`) as soon as a controller lives. It refuses while the controller of that\n" +
			"folder runs; of a backup it cannot tell. The state lies in the folder for temporary files (TMPDIR) meanwhile, its keys sealed.\n" +
			"Do this on a machine that you trust, and put the share away again.",
		Example: "  csm offline issue --backup 20260301t120000z-7.csmbackup --share recovery.key --ca main --node prod-eu/n7 --csr n7.csr --out n7.pem --entry n7.entry.json --reason 'INC-4711' --yes\n" +
			"  csm offline issue --data-dir /var/lib/csm --share recovery.key --ca main --node prod-eu/n7 --csr n7.csr --out n7.pem --entry n7.entry.json --reason 'INC-4711' --yes"}
	f := c.Flags()
	f.StringVar(&dir, "data-dir", "", "data folder of a controller, or a copy of it")
	f.StringVar(&file, "backup", "", "file of a backup, instead of --data-dir")
	f.StringVar(&share, "share", "", "file with the recovery share")
	f.StringVar(&csr, "csr", "", "file with the request, PEM")
	f.StringVar(&authority, "ca", "", "authority that signs")
	f.StringVar(&region, "region", "", "prefer the issuer of this region")
	f.StringVar(&node, "node", "", "node that it is for (cluster/node); without it, a client's certificate")
	f.StringVar(&out, "out", "", "write the chain and the authority's roots to this file")
	f.StringVar(&entry, "entry", "", "write the entry to this file")
	f.DurationVar(&validity, "validity", 7*24*time.Hour, "how long it lives, 720h at most")
	c.MarkFlagsOneRequired("data-dir", "backup")
	c.MarkFlagsMutuallyExclusive("data-dir", "backup")
	for _, name := range []string{"share", "csr", "ca", "out", "entry"} {
		_ = c.MarkFlagRequired(name)
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		g := ui.Of(cmd)
		known, err := a.resolve(g.Env) // for tenant and cluster alone: nobody is asked
		if err != nil {
			return err
		}
		s := &session{app: a, Global: g, cmd: cmd, ctx: known}
		if err := s.needReason(); err != nil {
			return err
		}
		risks := offlineRisks
		if file != "" {
			risks = append(risks[:len(risks):len(risks)], backupRisk)
		}
		for _, r := range risks {
			fmt.Fprintf(g.Err, "RISK: %s\n", r)
		}
		if !a.yes {
			return fault.New(fault.Refused, "not-confirmed", "nothing was signed").Do("add --yes when you take these risks")
		}
		o := server.OfflineOptions{DataDir: dir, Backup: file, Authority: s.authorityName(authority), Region: region, Validity: validity, Reason: a.reason}
		if node != "" {
			if o.Node, err = s.nodeName(node); err != nil {
				return err
			}
		}
		if o.CSR, err = s.requestFile(csr); err != nil {
			return err
		}
		secret, err := s.readInput(share)
		if err != nil {
			return err
		}
		o.Share = keyring.NewSecret(secret)
		defer o.Share.Zero()
		ctx, cancel := g.Context(cmd.Context())
		defer cancel()
		for _, path := range []string{out, entry} {
			if _, err := os.Lstat(path); err == nil {
				return fault.New(fault.Conflict, "file-exists", "%s is there already", path).Do("name another file")
			}
		}
		res, err := server.OfflineIssue(ctx, o)
		if err != nil {
			return err
		}
		return s.writeOffline(res, out, entry)
	}
	return c
}

// requestFile reads a request, PEM.
func (s *session) requestFile(path string) ([]byte, error) {
	b, err := s.readInput(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE REQUEST" || block.Type == "NEW CERTIFICATE REQUEST" {
			return block.Bytes, nil
		}
	}
	return nil, fault.New(fault.Invalid, "bad-csr", "%s holds no request in PEM", path).Do("make one with: openssl req -new -key node.key -out node.csr -subj /CN=n7 -addext subjectAltName=DNS:n7.example")
}

// writeOffline writes the entry first: a certificate without one must not exist.
func (s *session) writeOffline(res server.OfflineResult, out, entry string) error {
	chain := append(certificate.EncodeDER(res.Chain...), certificate.EncodePEM(res.Roots...)...)
	for _, f := range []struct {
		path string
		body []byte
	}{{entry, res.Entry}, {out, chain}} {
		if err := os.WriteFile(f.path, f.body, 0o600); err != nil {
			return fault.Wrap(err, fault.Internal, "not-written", "%s", f.path).Do("choose a folder that you may write; nothing was handed out")
		}
	}
	if !res.AsOf.IsZero() {
		s.Say("signed by what stood in the state at %s", res.AsOf.UTC().Format(time.RFC3339))
	}
	for _, r := range res.Revocation {
		s.Say("REVOCATION: %s", r)
	}
	s.Say("NOT RECORDED yet. As soon as a controller lives: csm certificate import %s", entry)
	sum := certificate.Fingerprint(res.Chain[0])
	v := map[string]any{"sha256": certificate.Hex(sum), "issuer": res.Issuer, "notAfter": res.NotAfter, "file": out, "entry": entry, "revocation": res.Revocation}
	if !res.AsOf.IsZero() {
		v["asOf"] = res.AsOf
	}
	return s.Print(ui.View{Object: v, Text: fmt.Sprintf("signed by %s until %s: %s\n", short(res.Issuer), res.NotAfter.UTC().Format(time.RFC3339), out)})
}

func (a *app) certificateImport() *cobra.Command {
	c := &cobra.Command{Use: "import ENTRY", Short: "Record a certificate that was signed offline", Args: cobra.ExactArgs(1),
		Long:    "import takes the entry that `csm offline issue` wrote. The certificate must be signed by an issuer of this system, and stands in the ledger afterwards: it can be found\nand revoked. Importing twice changes nothing.",
		Example: "  csm certificate import n7.entry.json"}
	return a.run(c, func(s *session, args []string) error {
		b, err := s.readInput(args[0])
		if err != nil {
			return err
		}
		var e server.OfflineEntry
		if json.Unmarshal(b, &e) != nil || e.Kind != server.EntryKind || len(e.Record) == 0 {
			return fault.New(fault.Invalid, "bad-entry", "%s is no entry of an offline certificate", args[0]).Do("give the file that `csm offline issue --entry` wrote, unchanged")
		}
		if s.reason == "" {
			s.client.reason = fmt.Sprintf("signed offline on %s at %s for %s: %s", e.Host, e.Time.Format(time.RFC3339), pick(e.Node, "an application"), e.Reason)
		}
		ans, err := s.post(resource.Tenant(e.Tenant)+"/certificates:import", map[string]any{"record": e.Record})
		if err != nil {
			return err
		}
		var v certificateView
		if err := decode(ans.body, &v); err != nil || s.dryRun {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: "recorded: " + v.Name + "\n"})
	})
}
