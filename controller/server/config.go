package server

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Config is controller.yaml. Every key has a safe default but name, region, advertise and data_dir.
type Config struct {
	// Name of this controller, unique in the system.
	Name string `yaml:"name"`
	// Region and Zone are tags of the server: issuers belong to regions.
	Region string `yaml:"region"`
	Zone   string `yaml:"zone"`
	// Advertise is the host name or address under which the other controllers and the agents reach this one.
	Advertise string `yaml:"advertise"`
	DataDir   string `yaml:"data_dir"`
	// Seal protects the key-encryption key of this controller on its disk.
	Seal SealConfig `yaml:"seal"`
	// JoinPeers are cluster addresses (host:9642) of controllers that can let this one in.
	JoinPeers []string `yaml:"join_peers"`
	Listen    Listen   `yaml:"listen"`
	// Metrics is the listen address of Prometheus metrics; empty turns them off.
	Metrics string `yaml:"metrics"`
	// Timers is "lan" (controllers within 10 ms of each other) or "wan" (within 150 ms).
	Timers string `yaml:"timers"`
	// PKIURL is the base of CRL and CA URLs inside certificates; default http://<advertise>:<pki port>.
	PKIURL string       `yaml:"pki_url"`
	Backup BackupConfig `yaml:"backup"`
	// Signer says what the keeper of the signing keys can do.
	Signer SignerConfig `yaml:"signer"`
	Log    cli.Log      `yaml:"log"`
}

// SealConfig says what opens the key-encryption key: "file" (a 0600 key file), "passphrase" (a 0600 file holding it), or
// "systemd-credential" (a name under $CREDENTIALS_DIRECTORY).
type SealConfig struct {
	Type string `yaml:"type"`
	Path string `yaml:"path"`
	Name string `yaml:"name"`
}

// SignerConfig is what is known of the keeper of the signing keys, as this controller uses it.
type SignerConfig struct {
	// RateLimit is how many certificates it may be asked to sign in a second; 0: as many as come. Above it requests wait in the order
	// in which what they replace ends.
	RateLimit float64 `yaml:"rate_limit"`
}

func (c SignerConfig) check(p *config.Problems) {
	if c.RateLimit != 0 && (c.RateLimit < 0.1 || c.RateLimit > 100_000) {
		p.Add("signer.rate_limit", fmt.Sprintf("%g is no rate", c.RateLimit), "use signatures a second, 0.1 to 100000, or leave it out: then there is no limit")
	}
}

// Listen are the listen addresses.
type Listen struct {
	API     string `yaml:"api"`
	Agents  string `yaml:"agents"`
	Cluster string `yaml:"cluster"`
	PKI     string `yaml:"pki"`
}

// DefaultConfig has every default filled in.
func DefaultConfig() Config {
	return Config{
		Zone:    "default",
		DataDir: "/var/lib/csm",
		Seal:    SealConfig{Type: "file"},
		Listen:  Listen{API: ":9640", Agents: ":9641", Cluster: ":9642", PKI: ":9643"},
		Metrics: "127.0.0.1:9644",
		Timers:  "lan",
		Backup:  BackupConfig{Keep: 30},
		Log:     cli.Log{Level: "info", Format: "json"},
	}
}

// Check tells every problem of the configuration (config.Checker) and derives what was left open.
func (c *Config) Check(p *config.Problems) {
	for _, id := range []struct{ key, value string }{{"name", c.Name}, {"region", c.Region}, {"zone", c.Zone}} {
		if resource.CheckID(id.key, id.value) != nil {
			p.Add(id.key, fmt.Sprintf("%.80q is not a valid name", id.value), "use lower-case letters, digits, '.', '-' and '_'")
		}
	}
	if c.Advertise == "" || strings.ContainsAny(c.Advertise, "/ ") {
		p.Add("advertise", fmt.Sprintf("%.80q is not a host name or address", c.Advertise), "give the name under which agents and other controllers reach this one")
	}
	if !filepath.IsAbs(c.DataDir) {
		p.Add("data_dir", fmt.Sprintf("%.80q is not an absolute path", c.DataDir), "for example data_dir: /var/lib/csm")
	}
	for _, l := range []struct{ key, addr string }{{"listen.api", c.Listen.API}, {"listen.agents", c.Listen.Agents},
		{"listen.cluster", c.Listen.Cluster}, {"listen.pki", c.Listen.PKI}} {
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			p.Add(l.key, fmt.Sprintf("%.80q is not a listen address", l.addr), "use host:port or :port")
		}
	}
	if c.Timers != "lan" && c.Timers != "wan" {
		p.Add("timers", fmt.Sprintf("%.40q is no set of timers", c.Timers), "use lan (controllers within 10 ms) or wan (within 150 ms)")
	}
	c.checkSeal(p)
	c.Backup.check(p)
	c.Signer.check(p)
	if c.PKIURL == "" {
		c.PKIURL = "http://" + net.JoinHostPort(c.Advertise, port(c.Listen.PKI))
	}
}

func (c *Config) checkSeal(p *config.Problems) {
	switch c.Seal.Type {
	case "file":
		if c.Seal.Path == "" {
			c.Seal.Path = filepath.Join(c.DataDir, "kek", "master.key")
		}
	case "passphrase":
		if c.Seal.Path == "" {
			p.Add("seal.path", "is needed for seal.type passphrase", "name a file of mode 0600 that holds the passphrase")
		}
	case "systemd-credential":
		if c.Seal.Name == "" {
			p.Add("seal.name", "is needed for seal.type systemd-credential", "for example seal: {type: systemd-credential, name: csm-kek}")
		}
	default:
		p.Add("seal.type", fmt.Sprintf("%.40q is unknown", c.Seal.Type), "use file, passphrase or systemd-credential")
	}
}

// port is the port of one of our own listen addresses.
func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// ClusterAddress is where the other controllers reach this one.
func (c *Config) ClusterAddress() string {
	return net.JoinHostPort(c.Advertise, port(c.Listen.Cluster))
}

// A system identity lives 30 days and is renewed at two thirds of that.
const (
	identityLifetime = 30 * 24 * time.Hour
	identityRenewAt  = identityLifetime * 2 / 3
)
