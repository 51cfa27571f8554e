package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Context says where the controllers are and who asks.
type Context struct {
	Name    string   `yaml:"name" json:"name"`
	Servers []string `yaml:"servers" json:"servers"`
	CAPin   string   `yaml:"ca_pin" json:"ca_pin"`
	Tenant  string   `yaml:"tenant,omitempty" json:"tenant,omitempty"`
	Cluster string   `yaml:"cluster,omitempty" json:"cluster,omitempty"`
	Auth    Auth     `yaml:"auth" json:"auth"`
	// Protected asks for a name or a plan's hash before anything changes.
	Protected bool `yaml:"protected,omitempty" json:"protected,omitempty"`
}

// Auth is a client certificate and its key, as files of PEM.
type Auth struct {
	Cert string `yaml:"cert,omitempty" json:"cert,omitempty"`
	Key  string `yaml:"key,omitempty" json:"key,omitempty"`
}

// Contexts is the file ~/.config/csm/config.yaml.
type Contexts struct {
	Current  string    `yaml:"current,omitempty"`
	Contexts []Context `yaml:"contexts"`
}

func loadContexts(path string) (Contexts, error) {
	return config.Load(Contexts{}, config.Options{Path: path, Optional: true, Environ: []string{}})
}

// save replaces the file whole, or not at all.
func (c Contexts) save(path string) error {
	b, err := yaml.Marshal(c)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "context", "encode the contexts")
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, fault.Invalid, "context", "make %s", dir).Do("check its owner, or set CSM_CONFIG to another file")
	}
	if err := atomicfile.Replace(path, b, 0o600); err != nil {
		return fault.Wrap(err, fault.Invalid, "context", "write %s", path).Do("check the owner of its folder and the disk, or set CSM_CONFIG to another file")
	}
	return nil
}

func (c Contexts) find(name string) (int, bool) {
	i := slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Name == name })
	return i, i >= 0
}

// resolve joins flags, environment and the chosen context.
func (a *app) resolve(env func(string) string) (Context, error) {
	all, err := loadContexts(configPath(env))
	if err != nil {
		return Context{}, err
	}
	var c Context
	if name := pick(a.context, env("CSM_CONTEXT"), all.Current); name != "" {
		i, ok := all.find(name)
		if !ok {
			return Context{}, fault.New(fault.NotFound, "no-context", "there is no context %q", name).Do("`csm context list` shows them, `csm context set %s …` makes it", name)
		}
		c = all.Contexts[i]
	} else if len(all.Contexts) == 1 {
		c = all.Contexts[0]
	}
	if s := env("CSM_SERVER"); s != "" {
		c.Servers = strings.Split(s, ",")
	}
	if len(a.servers) > 0 {
		c.Servers = a.servers
	}
	c.CAPin = pick(a.pin, env("CSM_CA_PIN"), c.CAPin)
	c.Tenant = pick(a.tenant, env("CSM_TENANT"), c.Tenant, resource.DefaultTenant)
	c.Cluster = pick(a.cluster, env("CSM_CLUSTER"), c.Cluster)
	c.Auth.Cert = pick(a.cert, env("CSM_CERT"), c.Auth.Cert)
	c.Auth.Key = pick(a.key, env("CSM_KEY"), c.Auth.Key)
	return c, nil
}

func (a *app) contextNames(cmd *cobra.Command) []string {
	all, err := loadContexts(configPath(ui.Of(cmd).Env))
	if err != nil {
		return nil
	}
	var out []string
	for _, c := range all.Contexts {
		out = append(out, c.Name)
	}
	return out
}

func (a *app) contextCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List contexts", Args: cobra.NoArgs, Example: "  csm context list\n  csm context list -o name",
		RunE: func(cmd *cobra.Command, _ []string) error {
			g := ui.Of(cmd)
			all, err := loadContexts(configPath(g.Env))
			if err != nil {
				return err
			}
			t := &ui.Table{Columns: []ui.Column{{Name: "CURRENT"}, {Name: "NAME"}, {Name: "SERVERS"}, {Name: "TENANT"}, {Name: "CLUSTER"}, {Name: "CA PIN", Wide: true}, {Name: "CERT", Wide: true}}}
			v := ui.View{Object: append([]Context{}, all.Contexts...), Items: []any{}, Table: t}
			for _, c := range all.Contexts {
				mark := ""
				if c.Name == all.Current {
					mark = "*"
				}
				t.Rows = append(t.Rows, []string{mark, c.Name, strings.Join(c.Servers, ", "), pick(c.Tenant, resource.DefaultTenant), c.Cluster, c.CAPin, c.Auth.Cert})
				v.Items = append(v.Items, c)
			}
			return g.Print(v)
		}}
	use := &cobra.Command{Use: "use NAME", Short: "Choose the context of commands that name none", Args: cobra.ExactArgs(1), Example: "  csm context use prod",
		ValidArgsFunction: a.completeWith(a.contextNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			g := ui.Of(cmd)
			path := configPath(g.Env)
			all, err := loadContexts(path)
			if err != nil {
				return err
			}
			if _, ok := all.find(args[0]); !ok {
				return fault.New(fault.NotFound, "no-context", "there is no context %q", args[0]).Do("`csm context list` shows them")
			}
			all.Current = args[0]
			if err := all.save(path); err != nil {
				return err
			}
			g.Say("context %s is used from now on", args[0])
			return nil
		}}
	return group("context", "Where the controllers are and who you are", list, use, a.contextSet())
}

func (a *app) contextSet() *cobra.Command {
	var protected bool
	c := &cobra.Command{Use: "set NAME", Short: "Make or change a context out of the flags given", Args: cobra.ExactArgs(1),
		Example: "  csm context set prod --server https://csm1.example:9640,https://csm2.example:9640 --ca-pin sha256:… --cert ada.pem --key ada.key\n" +
			"  csm context set prod --cluster prod-eu"}
	c.Flags().BoolVar(&protected, "protected", false, "ask for a name or a plan's hash before anything changes")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		g := ui.Of(cmd)
		if err := resource.CheckID("context", args[0]); err != nil {
			return err
		}
		path := configPath(g.Env)
		all, err := loadContexts(path)
		if err != nil {
			return err
		}
		i, ok := all.find(args[0])
		if !ok {
			all.Contexts = append(all.Contexts, Context{Name: args[0]})
			i = len(all.Contexts) - 1
		}
		if err := a.change(&all.Contexts[i], cmd.Flags().Changed("protected"), protected); err != nil {
			return err
		}
		if all.Current == "" {
			all.Current = args[0]
		}
		if err := all.save(path); err != nil {
			return err
		}
		g.Say("wrote context %s to %s", args[0], path)
		return nil
	}
	return c
}

func (a *app) change(x *Context, setProtected, protected bool) error {
	if len(a.servers) > 0 {
		x.Servers = a.servers
	}
	if a.pin != "" {
		if _, err := identity.ParsePin(a.pin); err != nil {
			return err
		}
		x.CAPin = a.pin
	}
	for into, from := range map[*string]string{&x.Auth.Cert: a.cert, &x.Auth.Key: a.key} {
		if from == "" {
			continue
		}
		abs, err := filepath.Abs(from)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "context", "%s", from)
		}
		*into = abs
	}
	x.Tenant, x.Cluster = pick(a.tenant, x.Tenant), pick(a.cluster, x.Cluster)
	if setProtected {
		x.Protected = protected
	}
	return nil
}
