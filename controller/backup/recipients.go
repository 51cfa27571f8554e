package backup

import (
	"fmt"
	"strings"

	"filippo.io/age"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// stanza is the kind of recipient that this product brings to age: the file key wrapped by HPKE (DHKEM P-384, RFC 9180) to a
// key encryption key of a controller or to the recovery share. Its arguments are the name and the key's fingerprint.
const stanza = "csm-hpke-p384"

func purpose(name string) string { return "backup file key for " + name }

type holder keyring.Recipient

// Wrap implements age.Recipient.
func (h holder) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	b, err := keyring.WrapFor(h.Public, purpose(h.Name), fileKey)
	if err != nil {
		return nil, err
	}
	return []*age.Stanza{{Type: stanza, Args: []string{h.Name, keyring.Fingerprint(h.Public)}, Body: b}}, nil
}

// opener is a controller's key encryption key, or the recovery share, as age.Identity.
type opener struct{ kek *keyring.KEK }

// Unwrap implements age.Identity.
func (o opener) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	own := keyring.Fingerprint(o.kek.Public())
	for _, s := range stanzas {
		if s.Type != stanza || len(s.Args) != 2 || s.Args[1] != own {
			continue
		}
		key, err := o.kek.Unwrap(purpose(s.Args[0]), s.Body)
		if err != nil {
			return nil, fmt.Errorf("the key of %s does not open: %w", s.Args[0], err)
		}
		return key, nil
	}
	return nil, age.ErrIncorrectIdentity
}

// Key opens backups: a controller's key encryption key or the recovery share.
func Key(kek *keyring.KEK) age.Identity { return opener{kek} }

// ParseRecipients reads what the configuration names beside the controllers and the recovery share: age X25519 recipients.
// The post-quantum ones of age are refused: one file key is wrapped to all, so it is as strong as the weakest of them.
func ParseRecipients(list []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, s := range list {
		if strings.HasPrefix(s, "age1pq1") {
			return nil, fault.New(fault.Invalid, "bad-recipient", "%.40q… is a post-quantum recipient and cannot stand beside the P-384 keys of the controllers", s).
				Do("use an age1… recipient, or encrypt the copies that leave the house once more with age")
		}
		r, err := age.ParseX25519Recipient(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "bad-recipient", "%.80q is no recipient of age", s).Do("make a pair with `age-keygen` and give the line that begins with age1")
		}
		out = append(out, r)
	}
	return out, nil
}

// ParseIdentities reads a file of age-keygen: what opens a backup that was made for a further recipient.
func ParseIdentities(text string) ([]age.Identity, error) {
	ids, err := age.ParseIdentities(strings.NewReader(text))
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad-identity", "the file holds no identity of age").Do("name the file that age-keygen wrote")
	}
	return ids, nil
}
