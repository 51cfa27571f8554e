package systemca

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// SystemPlan says what a rotation of the system CA would do.
type SystemPlan struct {
	Kind string `json:"kind" enum:"system"`
	// Before is the issuer that signs now; Pin that of its certificate.
	Before string   `json:"authorityBefore"`
	After  string   `json:"authorityAfter"`
	Pin    string   `json:"caPin"`
	Phases []string `json:"phases"`
	// Controllers and Administrators take a new identity; so do Agents, as many.
	Controllers    []string `json:"controllers"`
	Administrators []string `json:"administrators"`
	Agents         int      `json:"agents"`
	// Away are agents without a stream, the first hundred of them: until they have come back the retire waits for them, or names them.
	Away      []string `json:"away"`
	AwayTotal int      `json:"awayTotal"`
	Notes     []string `json:"notes"`
	Blockers  []Reason `json:"blockers"`
	Hash      string   `json:"hash" doc:"what start takes; another one when controllers or administrators are others"`

	issuer *authority.Issuer
}

// maxAway is how many agents that are away a plan names.
const maxAway = 100

// plan says what a rotation would do. What changes by the minute, which agents are connected, is shown and stands not in the hash.
func plan(ctx context.Context, q state.Querier, now time.Time) (SystemPlan, error) {
	p := SystemPlan{Kind: "system", Controllers: []string{}, Administrators: []string{}, Away: []string{}, Blockers: []Reason{}}
	sys, err := authority.InState(ctx, q, authority.SystemName)
	if err != nil {
		return p, err
	}
	if p.issuer = sys.Signing("", now); p.issuer == nil {
		return p, fault.New(fault.Unavailable, "no-root", "the system authority has no root that can sign").Do("restore a backup")
	}
	p.Before, p.After, p.Pin = p.issuer.Name, "a new root", identity.Pin(p.issuer.Certificate)
	v, err := look(ctx, q, now, row{before: p.Before})
	if err != nil {
		return p, err
	}
	for _, x := range v.Identities {
		switch x.Kind {
		case Controller:
			p.Controllers = append(p.Controllers, x.Name)
		case Admin:
			p.Administrators = append(p.Administrators, x.Name)
		default:
			p.Agents++
			if !x.Connected {
				if p.AwayTotal++; len(p.Away) < maxAway {
					p.Away = append(p.Away, x.Name)
				}
			}
		}
	}
	if r, ok, err := running(ctx, q); err != nil {
		return p, err
	} else if ok {
		p.Blockers = append(p.Blockers, Reason{Code: "one-at-a-time", Message: "the rotation " + short(r.name) + " is under way", Remedy: "wait for its end, or turn it round: `csm rotation rollback --system`"})
	}
	if v.Frozen != "" {
		p.Blockers = append(p.Blockers, Reason{Code: "frozen", Message: v.Frozen, Remedy: "lift the freeze: `csm system unfreeze`"})
	}
	p.Phases = []string{
		"distribute: a new root is made; every controller and every agent takes it into its verifier beside the present one",
		"reissue: controllers take an identity of it one after the other, each seen by another one; then all agents",
		"reissued: nothing moves; administrators get new certificates: `csm-controller admin add`",
		"retire, by hand: the present root leaves every verifier",
	}
	p.Notes = []string{
		"ca_pin in contexts of csm, and pin in agent.yaml of hosts that are yet to join, name the present root: they work until the retire; then the new pin must stand there (`csm status` prints it)",
		"backups made before the retire bring back a system that trusts the present root only: make one after it",
	}
	p.Hash, err = hashOf([]any{certificate.Hex(certificate.Fingerprint(p.issuer.Certificate.Raw)), p.Controllers, p.Administrators, p.Blockers})
	return p, err
}

func hashOf(parts any) (string, error) {
	b, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// SystemRetirePlan says what a retire would do, and what is in the way.
type SystemRetirePlan struct {
	Rotation       string   `json:"rotation"`
	WithdrawSHA256 []string `json:"withdrawSha256"`
	Reasons        []Reason `json:"reasons"`
	Hash           string   `json:"hash"`
}

func retirePlan(r row, v View, g Gates) SystemRetirePlan {
	p := SystemRetirePlan{Rotation: r.name, WithdrawSHA256: []string{short(r.before)}, Reasons: []Reason{}}
	var held []string
	if r.phase == Reissued {
		for _, x := range g.Ask(StepRetire, v) {
			p.Reasons = append(p.Reasons, x)
			held = append(held, x.Code+" "+x.Node)
		}
	}
	p.Hash, _ = hashOf([]any{r.name, r.phase, held}) // of strings: cannot fail
	return p
}
