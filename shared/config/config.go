// Package config loads the configuration of the three programs: defaults, then a YAML file, then CSM_* environment
// variables, then flags, each over the one before, into one typed struct.
//
// It owns how a configuration is read and how what is wrong with it is told: every problem names the file and line, the
// key, and what to do. It refuses unknown and double keys (a typing error must not become a default in silence) and
// secrets written into the file: a secret is a Reference. All problems are told at once, not one by one.
//
// Fields carry the tag `yaml:"key"`. The environment variable of the key listen.api is CSM_LISTEN_API; a list is
// comma-separated there.
package config

import (
	"errors"
	"os"
	"reflect"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// EnvPrefix begins each environment variable that sets a key.
const EnvPrefix = "CSM_"

// MaxFile bounds a configuration file, in bytes.
const MaxFile = 1 << 20

// Options say where a configuration comes from. The zero value reads the environment alone.
type Options struct {
	// Path of the YAML file; none is read when empty.
	Path string
	// Optional lets the file be absent.
	Optional bool
	// Environ is the environment as "NAME=value"; os.Environ() when nil.
	Environ []string
	// Flags that were set on the command line win over all. FlagKeys maps a flag's name to its key where they differ
	// ("data-dir" is data_dir without being told); a flag whose key the struct does not have is left alone.
	Flags    *pflag.FlagSet
	FlagKeys map[string]string
}

// Checker is what a configuration type implements to be checked after loading; problems get their line by their key.
type Checker interface{ Check(*Problems) }

// Load reads a configuration over defaults, which is the value that untouched keys keep. T is a struct. The error is a
// fault of code Invalid whose message lists every problem, one per line.
func Load[T any](defaults T, o Options) (T, error) {
	p := &Problems{Path: o.Path, lines: map[string]int{}}
	t := reflect.TypeFor[T]()
	k := koanf.New(".")
	file, err := readFile(o, t, p)
	if err != nil {
		return defaults, err
	}
	if err := k.Load(confmap.Provider(file, ""), nil); err != nil {
		return defaults, fault.Wrap(err, fault.Internal, "bad-config", "%s", o.Path)
	}
	keys := Keys(t)
	if err := k.Load(env.Provider(".", env.Opt{Prefix: EnvPrefix, EnvironFunc: o.environ, TransformFunc: envKey(keys, p)}), nil); err != nil {
		return defaults, fault.Wrap(err, fault.Internal, "bad-config", "read the environment")
	}
	if o.Flags != nil {
		flags := posflag.ProviderWithFlag(o.Flags, ".", k, func(f *pflag.Flag) (string, any) { return o.flagKey(keys, f) })
		if err := k.Load(flags, nil); err != nil {
			return defaults, fault.Wrap(err, fault.Internal, "bad-config", "read the flags")
		}
	}
	if err := p.Err(); err != nil {
		return defaults, err
	}
	out := defaults
	if err := decode(k.Raw(), &out); err != nil {
		p.Add("", err.Error(), "correct the value")
		return defaults, p.Err()
	}
	if c, ok := any(&out).(Checker); ok {
		c.Check(p)
	}
	return out, p.Err()
}

func (o Options) environ() []string {
	if o.Environ != nil {
		return o.Environ
	}
	return os.Environ()
}

func decode(raw map[string]any, out any) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName: tag, Result: out, WeaklyTypedInput: true, ZeroFields: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(),
			mapstructure.TextUnmarshallerHookFunc(),
			mapstructure.StringToSliceHookFunc(",")),
	})
	if err != nil {
		return err
	}
	return d.Decode(raw)
}

func readFile(o Options, t reflect.Type, p *Problems) (map[string]any, error) {
	if o.Path == "" {
		return map[string]any{}, nil
	}
	info, err := os.Stat(o.Path)
	if errors.Is(err, os.ErrNotExist) {
		if o.Optional {
			return map[string]any{}, nil
		}
		return nil, fault.New(fault.Invalid, "no-config", "there is no configuration file %s", o.Path).
			Do("write it (the README shows one), or name another with --config")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-config", "the configuration file %s cannot be read", o.Path).Do("check its owner and mode")
	}
	if info.Size() > MaxFile {
		return nil, fault.New(fault.Invalid, "bad-config", "%s is larger than %d bytes", o.Path, MaxFile).Do("name the configuration file, not another")
	}
	b, err := os.ReadFile(o.Path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-config", "the configuration file %s cannot be read", o.Path).Do("check its owner and mode")
	}
	return parse(b, t, p), nil
}

// parse checks a document against the type and gives its values; what is wrong goes to p.
func parse(b []byte, t reflect.Type, p *Problems) map[string]any {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		p.addLine(yamlLine(err), "", strings.TrimPrefix(err.Error(), "yaml: "), "correct the YAML: spaces not tabs, 'key: value', lists with '- '")
		return map[string]any{}
	}
	if len(doc.Content) == 0 {
		return map[string]any{}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		p.addLine(root.Line, "", "the file is not a list of 'key: value'", "begin with keys in the first column")
		return map[string]any{}
	}
	walk(root, t, "", p, 0)
	out := map[string]any{}
	if len(p.list) > 0 {
		return out
	}
	if err := root.Decode(&out); err != nil {
		p.addLine(yamlLine(err), "", strings.TrimPrefix(err.Error(), "yaml: "), "correct the YAML")
	}
	return out
}

// envKey maps CSM_LISTEN_API to listen.api by the keys that exist, because a key may hold underscores itself.
func envKey(keys []Key, p *Problems) func(k, v string) (string, any) {
	byName := map[string]Key{}
	for _, k := range keys {
		byName[k.Env()] = k
	}
	return func(name, v string) (string, any) {
		k, ok := byName[name]
		if !ok || v == "" {
			return "", nil
		}
		if err := checkScalar(v, k.Type); err != "" {
			p.add(Problem{Key: name, Message: err, Remedy: remedyFor(k.Type) + ", or unset this environment variable"})
			return "", nil
		}
		if k.Type.Kind() == reflect.Slice {
			return k.Path, splitList(v)
		}
		return k.Path, v
	}
}

func splitList(v string) []string {
	var out []string
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func (o Options) flagKey(keys []Key, f *pflag.Flag) (string, any) {
	if !f.Changed {
		return "", nil
	}
	key, ok := o.FlagKeys[f.Name]
	if !ok {
		key = strings.ReplaceAll(f.Name, "-", "_")
	}
	for _, k := range keys {
		if k.Path == key {
			return key, posflag.FlagVal(o.Flags, f)
		}
	}
	return "", nil
}
