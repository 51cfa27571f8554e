package fleet

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// storeRow is the wish for a store and what is there, as Apply decides by it.
type storeRow struct {
	name, store           string
	generation, installed uint64
	state                 agentv1.InstallState
	keystore, truststore  []byte
	wanted, leaf, proven  []byte
	unproved              bool
	// given: the leaf in the files was issued for this store, perhaps to an earlier incarnation of the node.
	given bool
	move  agentv1.MoveKind // what the newest generation asks for
	plan  []byte           // of the rollout that raised it
	facts []byte           // as the agent encoded them
	kept  []byte           // leaf of another CA that ours took the place of
	// keptDone: nobody wants that leaf back any more.
	keptDone bool
}

// age is that of the facts that are held, 0 when there are none.
func (s storeRow) age() uint64 {
	var f agentv1.StoreFacts
	if proto.Unmarshal(s.facts, &f) != nil {
		return 0
	}
	return f.Age
}

// givenLeaf says of a row of stores whether its leaf was issued under a claim for this store. Moves are kept for 90 days after
// their end, as long as a node's certificate lives.
const givenLeaf = `EXISTS (SELECT 1 FROM moves m WHERE m.node = stores.node AND m.store = stores.store AND m.issued_sha256 = stores.leaf_sha256)`

func readStore(a *state.Apply, node, store string) (s storeRow, ok bool, err error) {
	ok, err = found(a.QueryRow(`SELECT name, store, generation, installed, state, keystore_sha256, truststore_sha256, wanted_sha256, leaf_sha256, proven_sha256, unproved, wish_move, plan_hash, facts, kept_sha256, kept_done, `+givenLeaf+`
		FROM stores WHERE name = ?`, resource.Store(node, store)).
		Scan(&s.name, &s.store, &s.generation, &s.installed, &s.state, &s.keystore, &s.truststore, &s.wanted, &s.leaf, &s.proven, &s.unproved, &s.move, &s.plan, &s.facts, &s.kept, &s.keptDone, &s.given))
	return s, ok, err
}

// reportStores writes down which stores there are. A store seen for the first time becomes a wish; one that
// cassandra.yaml no longer names is forgotten unless it is on the move.
//
// Facts older than those that came with a move's report are passed over, unless a stream begins with them.
func reportStores(a *state.Apply, n nodeRow, encoded [][]byte, begins bool) error {
	if len(encoded) == 0 {
		return nil
	}
	changed := false
	var seen []string
	for _, b := range encoded {
		var s agentv1.StoreFacts
		if err := proto.Unmarshal(b, &s); err != nil {
			return fault.Wrap(err, fault.Invalid, "bad-facts", "a store's facts cannot be read")
		}
		if err := resource.CheckID("store", s.Store); err != nil {
			return err
		}
		seen = append(seen, s.Store)
		isNew, err := reportStore(a, n, &s, b, begins)
		if err != nil {
			return err
		}
		changed = changed || isNew
	}
	gone, err := forgetStores(a, n, seen)
	if err != nil || !(changed || gone) {
		return err
	}
	_, err = a.Exec(`UPDATE nodes SET changed = ? WHERE name = ?`, a.Index, n.name)
	signalTarget(a, n.name)
	return err
}

func reportStore(a *state.Apply, n nodeRow, s *agentv1.StoreFacts, facts []byte, begins bool) (isNew bool, err error) {
	held, known, err := readStore(a, n.name, s.Store)
	if err != nil || known && !begins && s.Age < held.age() {
		return false, err
	}
	if !known {
		if _, err := a.Exec(`INSERT INTO stores (name, node, store, generation, installed, reason, state, not_after_ms, renew_at_ms, unproved)
			VALUES (?,?,?,?,0,'first seen',0,0,0,0)`, resource.Store(n.name, s.Store), n.name, s.Store, a.Index); err != nil {
			return false, err
		}
	}
	return !known, writeFacts(a, n, s, facts, believable(s, held))
}

// believable is the state that a report may put a store into. A report alone proves nothing: only what a move proved
// counts as proven.
func believable(s *agentv1.StoreFacts, held storeRow) agentv1.InstallState {
	if s.State == agentv1.InstallState_INSTALL_STATE_PROVEN && (len(held.proven) == 0 || !bytes.Equal(held.proven, s.LeafSha256)) {
		return agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	}
	return s.State
}

// writeFacts takes what the agent says of the files. Trust that was proved with another truststore is proved no longer.
func writeFacts(a *state.Apply, n nodeRow, s *agentv1.StoreFacts, facts []byte, to agentv1.InstallState) error {
	if err := forgetProofs(a, n.name, s.Store, s.TruststoreSha256); err != nil {
		return err
	}
	_, err := a.Exec(`UPDATE stores SET state = ?, keystore_sha256 = ?, truststore_sha256 = ?, leaf_sha256 = ?, not_after_ms = ?, facts = ? WHERE name = ?`,
		int(to), s.KeystoreSha256, s.TruststoreSha256, s.LeafSha256, millis(s.NotAfter), facts, resource.Store(n.name, s.Store))
	return err
}

func forgetStores(a *state.Apply, n nodeRow, seen []string) (bool, error) {
	held, err := collect(a.Context(), a.Querier(), scanString, `SELECT store FROM stores WHERE node = ? ORDER BY store`, n.name)
	if err != nil {
		return false, err
	}
	gone := false
	for _, h := range held {
		if containsString(seen, h) {
			continue
		}
		res, err := a.Exec(`DELETE FROM stores WHERE name = ? AND NOT EXISTS (SELECT 1 FROM moves WHERE node = ? AND store = ? AND state = ?)`,
			resource.Store(n.name, h), n.name, h, moveOpen)
		if err != nil {
			return false, err
		}
		if k, err := res.RowsAffected(); err != nil {
			return false, err
		} else if k > 0 {
			gone = true
			if err := forgetProofs(a, n.name, h, nil); err != nil {
				return false, err
			}
		}
	}
	return gone, nil
}
