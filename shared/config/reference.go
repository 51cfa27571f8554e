package config

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Reference says where a secret is: "file:/etc/csm/pass", "env:NAME", or "credential:name" (systemd credentials,
// systemd.exec(5), LoadCredential=). A configuration never holds the secret itself; printing a Reference is safe.
type Reference string

// maxSecret bounds a secret, in bytes.
const maxSecret = 64 << 10

// ParseReference checks the shape. Its fault never repeats the text, which may be a secret written there by mistake.
func ParseReference(s string) (Reference, *fault.Error) {
	kind, rest, ok := strings.Cut(s, ":")
	known := kind == "file" || kind == "env" || kind == "credential"
	if s != "" && (!ok || !known || rest == "") {
		return "", fault.New(fault.Invalid, "secret-in-config", "a secret is not written here, only where it is").
			Do("write file:/path, env:NAME or credential:NAME")
	}
	return Reference(s), nil
}

// Resolve reads the secret. One line end at its end is cut off. The caller zeroes the bytes after use.
func (r Reference) Resolve() ([]byte, error) {
	if _, err := ParseReference(string(r)); err != nil {
		return nil, err
	}
	kind, rest, _ := strings.Cut(string(r), ":")
	switch kind {
	case "env":
		v, ok := os.LookupEnv(rest)
		if !ok {
			return nil, fault.New(fault.Invalid, "no-secret", "the environment variable %s is not set", rest).Do("set it for this program")
		}
		return []byte(v), nil
	case "credential":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, fault.New(fault.Invalid, "no-secret", "systemd gave no credentials to this program").Do("add LoadCredentialEncrypted=%s:... to the unit", rest)
		}
		return readSecret(filepath.Join(dir, filepath.Base(rest)))
	case "file":
		return readSecret(rest)
	}
	return nil, fault.New(fault.Invalid, "no-secret", "no secret is configured").Do("write file:/path, env:NAME or credential:NAME")
}

func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-secret", "the secret cannot be read").Do("check that the file exists and belongs to the user of this program")
	}
	if info.Size() > maxSecret {
		return nil, fault.New(fault.Invalid, "no-secret", "%s is larger than %d bytes", path, maxSecret).Do("name the file that holds the secret alone")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-secret", "the secret cannot be read").Do("check that the file belongs to the user of this program")
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	return b, nil
}
