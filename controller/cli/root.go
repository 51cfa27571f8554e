// Package cli is csm, the command line of administrators. It is a client of the REST API and of nothing else: it owns the
// contexts in the user's configuration, how answers look, and the care before commands that cannot be taken back.
//
// It keeps these promises: -o json is the resource as REST gave it; what changes something can be tried with --dry-run; a
// command that stops or removes something is done only after its name was typed or its plan's hash was given; when one
// controller cannot be reached the next one is asked, and nothing is done twice for that.
package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// app holds the flags that every command has.
type app struct {
	context, tenant, cluster string
	servers                  []string
	pin, cert, key           string
	wait, dryRun, yes        bool
	plan, reason             string
	consistent               bool
	// system: rotation commands are about the system CA.
	system bool
}

// Root makes csm.
func Root() *cobra.Command {
	a := &app{}
	root := ui.Root("csm", "Manage certificates and keys of Apache Cassandra",
		"csm asks the controllers of CSM (Cassandra Security Manager) over REST. Where they are, and who you are, stands in a context:\n"+
			"~/.config/csm/config.yaml, chosen with `csm context use`.",
		"  csm context set prod --server https://csm1.example:9640 --ca-pin sha256:… --cert ada.pem --key ada.key\n"+
			"  csm status\n  csm node list -c prod-eu\n  csm node renew prod-eu/n7 --wait")
	f := root.PersistentFlags()
	f.StringVar(&a.context, "context", "", "context to use (CSM_CONTEXT)")
	f.StringVarP(&a.tenant, "tenant", "T", "", "tenant (CSM_TENANT)")
	f.StringVarP(&a.cluster, "cluster", "c", "", "cluster (CSM_CLUSTER)")
	f.StringSliceVar(&a.servers, "server", nil, "controllers to ask, https://host:9640 (CSM_SERVER)")
	f.StringVar(&a.pin, "ca-pin", "", "pin of the system CA, sha256:… (CSM_CA_PIN)")
	f.StringVar(&a.cert, "cert", "", "file of your client certificate, PEM (CSM_CERT)")
	f.StringVar(&a.key, "key", "", "file of its key, PEM (CSM_KEY)")
	f.BoolVar(&a.wait, "wait", false, "wait until it is done, show how it goes")
	f.BoolVar(&a.dryRun, "dry-run", false, "check and show, change nothing")
	f.StringVar(&a.plan, "plan", "", "hash of the plan that --dry-run showed")
	f.StringVar(&a.reason, "reason", "", "why, for the audit log")
	f.BoolVar(&a.yes, "yes", false, "do not ask back (never enough for freeze, remove, retire)")
	f.BoolVar(&a.consistent, "consistent", false, "read as of now, not as of the controller asked")
	for flag, what := range map[string]func(*cobra.Command) []string{"cluster": a.clusterNames, "context": a.contextNames} {
		_ = root.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return what(cmd), cobra.ShellCompDirectiveNoFileComp
		})
	}
	root.AddCommand(a.statusCommand(), a.whoamiCommand(), a.whyCommand(), a.eventsCommand(), a.auditCommand(), a.apiCommand(), a.getCommand(),
		a.contextCommand(), a.tenantCommand(), a.clusterCommand(), a.nodeCommand(), a.rolloutCommand(), a.rotationCommand(), a.drillCommand(), a.certificateCommand(), a.caCommand(), a.trustCommand(), a.requestCommand(), a.systemCommand(), a.backupCommand(), a.appCommand(), a.doctorCommand(), a.checkCommand())
	root.AddCommand(a.emergencyCommand(), group("offline", "What can be done with every controller dead", a.offlineIssue()))
	return root
}

// pick is the first that is set: flag, environment, context.
func pick(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// configPath is where contexts are kept.
func configPath(env func(string) string) string {
	if p := env("CSM_CONFIG"); p != "" {
		return p
	}
	if d := env("XDG_CONFIG_HOME"); d != "" {
		return filepath.Join(d, "csm", "config.yaml")
	}
	home := env("HOME")
	if home == "" {
		home, _ = os.UserHomeDir()
	}
	return filepath.Join(home, ".config", "csm", "config.yaml")
}

// session is one command's view of the control plane.
type session struct {
	*app
	*ui.Global
	cmd    *cobra.Command
	client *client
	ctx    Context
}

// open reads the context and prepares the client.
func (a *app) open(cmd *cobra.Command) (*session, error) {
	g := ui.Of(cmd)
	c, err := a.resolve(g.Env)
	if err != nil {
		return nil, err
	}
	cl, err := newClient(c, g)
	if err != nil {
		return nil, err
	}
	cl.reason = a.reason
	return &session{app: a, Global: g, cmd: cmd, client: cl, ctx: c}, nil
}

// run makes a command that asks the controllers.
func (a *app) run(c *cobra.Command, do func(s *session, args []string) error) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.open(cmd)
		if err != nil {
			return err
		}
		return do(s, args)
	}
	return c
}

// group makes a noun.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(verbs...)
	return c
}

func (s *session) tenantName() string { return resource.Tenant(s.ctx.Tenant) }

// clusterName reads a cluster's name: full, short, or the context's when empty.
func (s *session) clusterName(arg string) (string, error) {
	if strings.HasPrefix(arg, "tenants/") {
		return arg, nil
	}
	arg = pick(arg, s.ctx.Cluster)
	if arg == "" {
		return "", fault.New(fault.Invalid, "no-cluster-named", "no cluster is named").Do("add -c CLUSTER, or set one: csm context set %s --cluster CLUSTER", pick(s.ctx.Name, "NAME"))
	}
	return resource.Cluster(s.ctx.Tenant, arg), nil
}

// nodeName reads a node's name: full, cluster/node, or a node of the context's cluster.
func (s *session) nodeName(arg string) (string, error) {
	if strings.HasPrefix(arg, "tenants/") {
		return arg, nil
	}
	if c, n, ok := strings.Cut(arg, "/"); ok {
		return resource.Node(s.ctx.Tenant, c, n), nil
	}
	c, err := s.clusterName("")
	return c + "/nodes/" + arg, err
}

func (s *session) authorityName(arg string) string {
	switch {
	case strings.HasPrefix(arg, "tenants/"), strings.HasPrefix(arg, "system/"):
		return arg
	case arg == "system":
		return "system/authorities/system"
	}
	return resource.Authority(s.ctx.Tenant, arg)
}

// short is a name as people write it: prod-eu/n7 for a node, the last segment for the rest.
func short(name string) string {
	if c := resource.Segment(name, "clusters"); c != "" && resource.Segment(name, "nodes") != "" {
		return c + "/" + resource.Segment(name, "nodes")
	}
	return resource.Last(name)
}
