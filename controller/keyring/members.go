package keyring

import (
	"context"
	"fmt"
	"sort"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// WrapFor gives another controller every DEK: an audited act of its own, after an administrator compared Fingerprint of
// kekPublic. Only an unsealed controller can do it. Again with the same key is harmless; another key for a name that has
// wraps is refused with reason "kek-changed".
func (k *Keyring) WrapFor(ctx context.Context, controllerName string, kekPublic []byte, actor string) error {
	if !k.Unsealed() {
		return sealed()
	}
	if err := k.Unseal(ctx); err != nil { // DEKs that others made since
		return err
	}
	k.mu.RLock()
	cmd := &clusterv1.WrapDeks{}
	ids := make([]string, 0, len(k.deks))
	for id := range k.deks {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	var err error
	for _, id := range ids {
		var w *clusterv1.DekWrap
		if w, err = wrap(id, k.deks[id].raw, controllerName, kekPublic); err != nil {
			break
		}
		cmd.Wraps = append(cmd.Wraps, w)
	}
	k.mu.RUnlock()
	if err != nil {
		return err
	}
	return k.propose(ctx, state.Proposal{Command: cmd, Actor: actor,
		Reason: fmt.Sprintf("key encryption key of %s, sha256 %s", controllerName, Fingerprint(kekPublic))})
}

// Rotation says what Rotate did.
type Rotation struct {
	// DEK is the id of the new data encryption key.
	DEK string
	// Resealed counts the keys put under it.
	Resealed int
	// Exposed names the keys that the removed controller could open while it was a member. A new DEK does not take that
	// knowledge away: their issuers are to be re-keyed if the controller was not trusted to forget.
	Exposed []string
}

// Rotate makes a new active DEK, wrapped to every recipient but removed (empty: nobody is removed), takes all wraps of
// removed away and puts every key under the new DEK. Old DEKs stay readable for the rest: older blobs need them.
// It is safe to call again after a failure.
func (k *Keyring) Rotate(ctx context.Context, removed, actor, reason string) (Rotation, error) {
	if removed == k.recipient || removed == RecoveryRecipient {
		return Rotation{}, fault.New(fault.Invalid, "bad-recipient", "%q cannot be removed from here", removed).Do("ask another controller")
	}
	if err := k.Unseal(ctx); err != nil {
		return Rotation{}, err
	}
	previous, _, err := k.active(ctx)
	if err != nil {
		return Rotation{}, err
	}
	recipients, err := k.recipients(ctx, previous)
	if err != nil {
		return Rotation{}, err
	}
	id, raw, err := newDEK()
	if err != nil {
		return Rotation{}, err
	}
	defer raw.Zero()
	canary, err := sealCanary(id, raw)
	if err != nil {
		return Rotation{}, err
	}
	cmd := &clusterv1.RotateDek{Dek: id, Previous: previous, Canary: canary, RemoveRecipient: removed}
	for _, r := range recipients {
		if r.Recipient == removed {
			continue
		}
		w, err := wrap(id, raw, r.Recipient, r.RecipientPublic)
		if err != nil {
			return Rotation{}, err
		}
		cmd.Wraps = append(cmd.Wraps, w)
	}
	if err := k.propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: reason}); err != nil {
		return Rotation{}, err
	}
	if err := k.Unseal(ctx); err != nil {
		return Rotation{}, err
	}
	return k.reseal(ctx, id, removed, actor, reason)
}

func (k *Keyring) recipients(ctx context.Context, dek string) (out []*clusterv1.DekWrap, err error) {
	err = k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT recipient, recipient_public FROM dek_wraps WHERE dek = ? ORDER BY recipient`, dek)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			w := &clusterv1.DekWrap{}
			if err := rows.Scan(&w.Recipient, &w.RecipientPublic); err != nil {
				return err
			}
			out = append(out, w)
		}
		return rows.Err()
	})
	return out, err
}

// Recipient is who can open the data encryption key, and with it all that is sealed.
type Recipient struct {
	// Name of a controller, or RecoveryRecipient.
	Name string
	// Public is its public key set (tink, binary).
	Public []byte
}

// Recipients are all who can open the newest data encryption key, by name.
func (k *Keyring) Recipients(ctx context.Context) ([]Recipient, error) {
	var id string
	err := k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT id FROM deks WHERE state = 'active'`).Scan(&id)
	})
	if err != nil {
		return nil, err
	}
	wraps, err := k.recipients(ctx, id)
	var out []Recipient
	for _, w := range wraps {
		out = append(out, Recipient{w.Recipient, w.RecipientPublic})
	}
	return out, err
}

// reseal puts every software key under the active DEK, a hundred to a command.
func (k *Keyring) reseal(ctx context.Context, id, removed, actor, reason string) (Rotation, error) {
	out := Rotation{DEK: id}
	var old []*clusterv1.SealedKey
	err := k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT name, dek, sealed FROM keys WHERE kind = ? ORDER BY name`, kindSoftware)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			s := &clusterv1.SealedKey{}
			if err := rows.Scan(&s.Name, &s.Dek, &s.Sealed); err != nil {
				return err
			}
			old = append(old, s)
		}
		return rows.Err()
	})
	if err != nil {
		return out, err
	}
	d, err := k.dek(ctx, id)
	if err != nil {
		return out, err
	}
	cmd := &clusterv1.ResealKeys{}
	for i, s := range old {
		if removed != "" {
			out.Exposed = append(out.Exposed, s.Name)
		}
		if s.Dek != id {
			plain, err := k.Open(ctx, keyAAD(s.Name), s.Sealed)
			if err != nil {
				return out, err
			}
			blob, err := d.seal(id, keyAAD(s.Name), plain.b())
			plain.Zero()
			if err != nil {
				return out, err
			}
			cmd.Keys = append(cmd.Keys, &clusterv1.SealedKey{Name: s.Name, Dek: id, Sealed: blob})
		}
		if len(cmd.Keys) == 100 || (i == len(old)-1 && len(cmd.Keys) > 0) {
			if err := k.propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: reason}); err != nil {
				return out, err
			}
			out.Resealed += len(cmd.Keys)
			cmd = &clusterv1.ResealKeys{}
		}
	}
	return out, nil
}

// Holds says whether a data encryption key is wrapped to a recipient.
func (k *Keyring) Holds(ctx context.Context, recipient string) (held bool, err error) {
	err = k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM dek_wraps WHERE recipient = ?)`, recipient).Scan(&held)
	})
	return held, err
}
