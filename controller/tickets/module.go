package tickets

import (
	"database/sql"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Module is what this package puts into the state machine (migration 731).
func Module() state.Module {
	return state.Module{
		Name: "tickets",
		Migrations: []state.Migration{{Number: 731, SQL: `
CREATE TABLE ticket_keys (
	id INTEGER PRIMARY KEY,
	sealed BLOB NOT NULL,
	create_ms INTEGER NOT NULL
) STRICT;`}},
		Commands: func(r *state.Registry) { state.Handle(r, apply) },
	}
}

// apply is deterministic; id is the command's place in the log.
func apply(a *state.Apply, c *clusterv1.AddTicketKey) (*clusterv1.Empty, error) {
	if len(c.Sealed) == 0 || len(c.Sealed) > 512 {
		return nil, fault.New(fault.Invalid, "bad-ticket-key", "a sealed session ticket key of %d bytes", len(c.Sealed))
	}
	var newest int64
	if err := a.QueryRow(`SELECT create_ms FROM ticket_keys ORDER BY id DESC LIMIT 1`).Scan(&newest); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if age := a.Now.Sub(time.UnixMilli(newest)); !c.Alone && age < Fresh {
		return nil, fault.New(fault.Refused, "ticket-key-fresh", "the newest session ticket key is %s old", age.Round(time.Second)).Do("another comes by itself after %s", Turn)
	}
	if c.Alone {
		if _, err := a.Exec(`DELETE FROM ticket_keys`); err != nil {
			return nil, err
		}
	}
	if _, err := a.Exec(`INSERT INTO ticket_keys (id, sealed, create_ms) VALUES (?,?,?)`, a.Index, c.Sealed, a.Now.UnixMilli()); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`DELETE FROM ticket_keys WHERE id NOT IN (SELECT id FROM ticket_keys ORDER BY id DESC LIMIT ?)`, kept); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, Name)
	return &clusterv1.Empty{}, nil
}
