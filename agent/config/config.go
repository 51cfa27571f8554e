// Package config is the agent's configuration, agent.yaml: what it is, what it refuses, and what follows from it. The
// local file is the ceiling of what an agent may do: no controller can raise the mode, name a command, a folder or a port.
package config

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Defaults.
const (
	DefaultPath     = "/etc/csm/agent.yaml"
	DefaultStateDir = "/var/lib/csm-agent"
	DefaultMode     = "observe"
)

// Config is agent.yaml.
type Config struct {
	// Controllers are host:port of any controllers, port 9641; one is enough, all are better.
	Controllers []string `yaml:"controllers"`
	// Pin is the fingerprint of the system CA; only joining needs it.
	Pin string `yaml:"pin"`
	// Cluster is the id or full name of the cluster that this host's node belongs to.
	Cluster string `yaml:"cluster"`
	// Join is the evidence for the first contact.
	Join Join `yaml:"join"`
	// Mode is observe, stage or manage.
	Mode string `yaml:"mode"`
	// Cassandra are the instances on this host, usually one.
	Cassandra []Instance `yaml:"cassandra"`
	// StateDir holds identities, journals and the status file.
	StateDir string `yaml:"state_dir"`
	// ReloadSocket is where systemd starts the helper that reloads, for instances that name no socket of their own. Empty: the
	// agent starts the helper itself. The packaged unit sets it by CSM_RELOAD_SOCKET.
	ReloadSocket string `yaml:"reload_socket"`
	// LinksSocket is where systemd starts the helper that may end connections. Empty: the agent starts it itself, and it may do what
	// the agent's user may. The packaged unit sets it by CSM_LINKS_SOCKET.
	LinksSocket string `yaml:"links_socket"`
	// HoldFile is the kill switch: while it is there, nothing is changed.
	HoldFile string `yaml:"hold_file"`
	// Scan is the inventory.
	Scan Scan    `yaml:"scan"`
	Log  cli.Log `yaml:"log"`
}

// Join says by what evidence an identity is asked for.
type Join struct {
	// Method is "token", or "possession" of the key that Cassandra uses today.
	Method string `yaml:"method"`
	// File holds the token; it is removed by nobody but is useless once used.
	File string `yaml:"file"`
	// Node is the short name that a node asks for by possession; the default is the host's name.
	Node string `yaml:"node"`
}

// Instance is one Cassandra on this host.
type Instance struct {
	// Name of the instance's part of the state folder; the default is "cassandra", and needed only where there are several.
	Name string `yaml:"name"`
	// Config is the path of cassandra.yaml.
	Config string `yaml:"config"`
	// WorkDir against which Cassandra resolves relative paths.
	WorkDir string `yaml:"work_dir"`
	// StoreRoots are the only folders in which stores are written, besides /etc/cassandra/tls.
	StoreRoots []string `yaml:"store_roots"`
	JMX        JMX      `yaml:"jmx"`
	CQL        CQL      `yaml:"cql"`
	Reload     Reload   `yaml:"reload"`
	// Join goes before the common one.
	Join Join `yaml:"join"`
}

// CQL is how the agent reads from the instance over its CQL port: connected clients, and ranges that other members own. Without
// it, a node that asks for no login is read all the same.
type CQL struct {
	// Username and Password log in where Cassandra asks for it. The role needs SELECT alone (docs/agent.md).
	Username string           `yaml:"username"`
	Password config.Reference `yaml:"password"`
	// Table that is read to see whether ranges of other members answer: keyspace.table, the default is
	// system_distributed.view_build_status. One token of it is read, at most one row.
	Table string `yaml:"table"`
	// Every is how often without being asked; 0 is an hour.
	Every time.Duration `yaml:"every"`
	// Off never connects.
	Off bool `yaml:"off"`
}

// JMX is where nodetool, or what takes its place, finds the instance.
type JMX struct {
	Host string `yaml:"host"`
	Port int    `yaml:"port"`
	// User and PasswordFile log in where JMX asks for it. nodetool itself reads the file (-pwf): lines of `user password`,
	// readable by the agent's user alone. No password stands on a command line.
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`
	// TLS makes it use TLS (--ssl), set up by ~/.cassandra/nodetool-ssl.properties of the user who runs it.
	TLS bool `yaml:"tls"`
}

// Reload is how the instance is made to read its stores again; the default is nodetool reloadssl.
type Reload struct {
	// Way is auto (nodetool, or our own client of JMX where no nodetool is found), nodetool, jmx (our own client), or poll: the agent
	// waits until Cassandra looks at its files by itself, which takes ten minutes and more. Empty is auto.
	Way string `yaml:"way"`
	// Java runs our own client; empty: it is looked for.
	Java string `yaml:"java"`
	// Command takes the place of nodetool reloadssl.
	Command []string      `yaml:"command"`
	Dir     string        `yaml:"dir"`
	Env     []string      `yaml:"env"`
	Timeout time.Duration `yaml:"timeout"`
	// Ring is a command that prints the ring as nodetool status does; not needed where Command ends in reloadssl.
	Ring []string `yaml:"ring"`
	// Netstats is a command that prints what nodetool netstats does; not needed where Command ends in reloadssl.
	Netstats []string `yaml:"netstats"`
	// Socket of a helper started by systemd instead of a child process.
	Socket string `yaml:"socket"`
}

// Scan says where certificates are looked for, and how often without a change.
type Scan struct {
	// Roots are files and folders besides the store folders and that of cassandra.yaml.
	Roots []string      `yaml:"roots"`
	Every time.Duration `yaml:"every"`
}

// Defaults is what an empty file means.
func Defaults() Config {
	return Config{Mode: DefaultMode, StateDir: DefaultStateDir, HoldFile: install.DefaultHold,
		Join: Join{Method: "token"}, Scan: Scan{Every: 24 * time.Hour}, Log: cli.Log{Level: "info", Format: "json"}}
}

// Check finds what cannot work; the loader calls it.
func (c *Config) Check(p *config.Problems) {
	if c.AgentMode() == agentv1.Mode_MODE_UNSPECIFIED {
		p.Add("mode", fmt.Sprintf("%q is not a mode", c.Mode), "write observe (changes nothing), stage (prepares) or manage (acts)")
	}
	for i, a := range c.Controllers {
		if h, port, err := net.SplitHostPort(a); err != nil || h == "" || port == "" {
			p.Add(fmt.Sprintf("controllers[%d]", i), fmt.Sprintf("%q is not host:port", a), "write it as csm1.example.net:9641")
		}
	}
	if c.Pin != "" {
		if _, err := identity.ParsePin(c.Pin); err != nil {
			p.Add("pin", err.Error(), "copy the pin that `csm cluster join-command` prints")
		}
	}
	if c.StateDir == "" || !filepath.IsAbs(c.StateDir) {
		p.Add("state_dir", "the state folder is not an absolute path", "write "+DefaultStateDir)
	}
	if c.HoldFile == "" || !filepath.IsAbs(c.HoldFile) {
		p.Add("hold_file", "the path of the HOLD file is not absolute", "write "+install.DefaultHold)
	}
	if c.ReloadSocket != "" && !filepath.IsAbs(c.ReloadSocket) {
		p.Add("reload_socket", "the path of the helper's socket is not absolute", "write /run/csm-agent/reload.sock, or leave it out")
	}
	if c.LinksSocket != "" && !filepath.IsAbs(c.LinksSocket) {
		p.Add("links_socket", "the path of the helper's socket is not absolute", "write /run/csm-agent/links.sock, or leave it out")
	}
	if c.Scan.Every < time.Hour {
		p.Add("scan.every", "scanning more often than each hour costs more than it tells", "write 24h; changes in store folders are seen at once")
	}
	checkJoin(p, "join", c.Join)
	names, paths := map[string]bool{}, map[string]bool{}
	for i, in := range c.Cassandra {
		key := fmt.Sprintf("cassandra[%d]", i)
		in.check(p, key)
		if n := in.StateName(); names[n] {
			p.Add(key+".name", fmt.Sprintf("a second instance is named %q", n), "give each instance a name of its own")
		} else {
			names[n] = true
		}
		if paths[in.Config] {
			p.Add(key+".config", "the same cassandra.yaml stands twice", "remove one entry")
		}
		paths[in.Config] = true
	}
	if _, err := c.Log.Logger(discard{}); err != nil {
		p.Add("log", err.Error(), "levels are debug, info, warn, error; formats json and text")
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func checkJoin(p *config.Problems, key string, j Join) {
	if j.Method != "" && j.Method != "token" && j.Method != "possession" {
		p.Add(key+".method", fmt.Sprintf("%q is not a way to join", j.Method), "write token, or possession")
	}
	if j.Node != "" {
		if err := resource.CheckID("node", j.Node); err != nil {
			p.Add(key+".node", err.Error(), "write a short name like n7")
		}
	}
	if j.File != "" && !filepath.IsAbs(j.File) {
		p.Add(key+".file", "the path of the token is not absolute", "write /etc/csm/join.token")
	}
}

func (in Instance) check(p *config.Problems, key string) {
	if in.Config == "" || !filepath.IsAbs(in.Config) {
		p.Add(key+".config", "the path of cassandra.yaml is missing or not absolute", "write config: /etc/cassandra/cassandra.yaml")
	}
	for i, r := range in.StoreRoots {
		k := fmt.Sprintf("%s.store_roots[%d]", key, i)
		if !filepath.IsAbs(r) || filepath.Clean(r) == string(filepath.Separator) {
			p.Add(k, fmt.Sprintf("%q cannot be a store folder", r), "name the folder that holds keystore and truststore and little else")
		}
	}
	if strings.ContainsAny(in.Name, `/\`) || strings.HasPrefix(in.Name, ".") || len(in.Name) > 63 || in.Name == "metrics" {
		p.Add(key+".name", fmt.Sprintf("%.80q cannot be the name of a folder", in.Name), "use letters, digits and dashes")
	}
	if in.JMX.Port < 0 || in.JMX.Port > 65535 {
		p.Add(key+".jmx.port", fmt.Sprintf("%d is not a port", in.JMX.Port), "write 7199")
	}
	if (in.JMX.User == "") != (in.JMX.PasswordFile == "") {
		p.Add(key+".jmx", "a login of JMX needs user and password_file", "write both, or neither")
	}
	if in.JMX.PasswordFile != "" && !filepath.IsAbs(in.JMX.PasswordFile) {
		p.Add(key+".jmx.password_file", "the path of the password file is not absolute", "write /etc/csm/jmx.password, with a line `user password`, mode 0400")
	}
	if strings.HasPrefix(in.JMX.User, "-") || strings.HasPrefix(in.JMX.Host, "-") {
		p.Add(key+".jmx", "a host or user cannot begin with a dash", "write the host and the user of JMX")
	}
	in.CQL.check(p, key+".cql")
	if len(in.Reload.Command) > 0 && in.Reload.Command[0] == "" {
		p.Add(key+".reload.command", "the command has no program", "write [nodetool, reloadssl], or leave it out")
	}
	in.Reload.checkWay(p, key+".reload")
	if in.Reload.Socket != "" && !filepath.IsAbs(in.Reload.Socket) {
		p.Add(key+".reload.socket", "the path of the helper's socket is not absolute", "write /run/csm-agent/reload.sock, or leave it out")
	}
	if in.Reload.Timeout < 0 {
		p.Add(key+".reload.timeout", "a command cannot end before it begins", "write 30s")
	}
	checkJoin(p, key+".join", in.Join)
}

func (r Reload) checkWay(p *config.Problems, key string) {
	switch w := reload.Way(r.Way); {
	case w != "" && w != reload.Auto && w != reload.Nodetool && w != reload.JMX && w != reload.Poll:
		p.Add(key+".way", fmt.Sprintf("%.40q is not a way to reload", r.Way), "write auto, nodetool, jmx or poll")
	case (w == reload.JMX || w == reload.Poll) && len(r.Command) > 0:
		p.Add(key+".command", "a command stands beside way: "+r.Way+", which runs none", "remove one of the two")
	}
	if r.Java != "" && !filepath.IsAbs(r.Java) {
		p.Add(key+".java", "the path of Java is not absolute", "write /usr/lib/jvm/java-17-openjdk-amd64/bin/java, or leave it out")
	}
}

// Polls says that nothing makes the instance read its stores again but Cassandra itself.
func (r Reload) Polls() bool { return reload.Way(r.Way) == reload.Poll }

var tableName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,47}\.[A-Za-z][A-Za-z0-9_]{0,47}$`)

func (c CQL) check(p *config.Problems, key string) {
	if (c.Username == "") != (c.Password == "") {
		p.Add(key, "a login of CQL needs username and password", "write both, or neither")
	}
	if len(c.Username) > 128 {
		p.Add(key+".username", "the name of the role is longer than 128 bytes", "write the role's name")
	}
	if _, err := config.ParseReference(string(c.Password)); err != nil {
		p.Add(key+".password", err.Message, "write file:/etc/csm/cql.password, credential:NAME or env:NAME")
	}
	if c.Table != "" && !tableName.MatchString(c.Table) {
		p.Add(key+".table", fmt.Sprintf("%.100q is not keyspace.table", c.Table), "write keyspace.table, or leave it out")
	}
	if c.Every != 0 && c.Every < 10*time.Minute {
		p.Add(key+".every", "looking more often than each ten minutes costs more than it tells", "write 1h, or leave it out: controllers ask when they need to know")
	}
}

// ForRun finds what is missing to run, which `inspect` and `hold` do not need.
func (c *Config) ForRun(p *config.Problems) {
	if len(c.Controllers) == 0 {
		p.Add("controllers", "no controller is named", "write controllers: [csm1.example.net:9641, csm2.example.net:9641]")
	}
	if len(c.Cassandra) == 0 {
		p.Add("cassandra", "no Cassandra is named", "write cassandra: [{config: /etc/cassandra/cassandra.yaml}]")
	}
}

// AgentMode is the mode on the wire; unspecified when the word is none.
func (c *Config) AgentMode() agentv1.Mode {
	switch c.Mode {
	case "observe":
		return agentv1.Mode_MODE_OBSERVE
	case "stage":
		return agentv1.Mode_MODE_STAGE
	case "manage":
		return agentv1.Mode_MODE_MANAGE
	}
	return agentv1.Mode_MODE_UNSPECIFIED
}

// JoinFor is the evidence of one instance.
func (c *Config) JoinFor(in Instance) Join {
	j := c.Join
	if in.Join.Method != "" {
		j.Method = in.Join.Method
	}
	if in.Join.File != "" {
		j.File = in.Join.File
	}
	if in.Join.Node != "" {
		j.Node = in.Join.Node
	}
	return j
}

// StateName is the instance's folder within the state folder.
func (in Instance) StateName() string {
	if in.Name == "" {
		return "cassandra"
	}
	return in.Name
}

// Socket is where the reload helper of the instance listens; empty when the agent starts it.
func (c *Config) Socket(in Instance) string {
	if in.Reload.Socket != "" {
		return in.Reload.Socket
	}
	return c.ReloadSocket
}

// Folder is the instance's part of the state folder.
func (c *Config) Folder(in Instance) string { return filepath.Join(c.StateDir, in.StateName()) }

// ReadOptions are how cassandra.yaml of the instance is read.
func (in Instance) ReadOptions() cassandra.Options {
	return cassandra.Options{Roots: append([]string{cassandra.DefaultRoot}, in.StoreRoots...), WorkDir: in.WorkDir}
}

// Command is the fixed reload command of the instance.
func (in Instance) Command() reload.Command {
	host, port := in.JMX.Host, in.JMX.Port
	if host == "" {
		host = "127.0.0.1"
	}
	if port == 0 {
		port = 7199
	}
	c := reload.ByNodetool(host, uint16(port), in.JMX.login()...)
	c.Way, c.Java = cmp.Or(reload.Way(in.Reload.Way), reload.Auto), in.Reload.Java
	if len(in.Reload.Command) > 0 {
		c = reload.Command{Path: in.Reload.Command[0], Args: in.Reload.Command[1:]}
	}
	c.Dir, c.Env, c.Timeout, c.Ring, c.Netstats = in.Reload.Dir, in.Reload.Env, in.Reload.Timeout, in.Reload.Ring, in.Reload.Netstats
	return c
}

// login are the arguments of nodetool by which it logs in.
func (j JMX) login() (args []string) {
	if j.TLS {
		args = append(args, "--ssl")
	}
	if j.User != "" {
		args = append(args, "-u", j.User, "-pwf", j.PasswordFile)
	}
	return args
}

// Commands are the commands of all instances, by the path of cassandra.yaml: what the reload helper may run.
func (c *Config) Commands() map[string]reload.Command {
	out := map[string]reload.Command{}
	for _, in := range c.Cassandra {
		cmd := in.Command()
		cmd.Home = filepath.Join(c.Folder(in), "nodetool")
		out[in.Config] = cmd
	}
	return out
}
