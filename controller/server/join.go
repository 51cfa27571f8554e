package server

import (
	"context"
	"encoding/hex"
	"os"

	"github.com/google/uuid"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// JoinOptions say by what right this controller comes.
type JoinOptions struct {
	// Pin of the system CA and one-time Token, both from `csm system join-token`.
	Pin, Token string
	// Key is told the fingerprint of this controller's key before anyone is asked; Waiting is told it again whenever the
	// others answer that an administrator has to compare and approve it.
	Key     func(fingerprint string)
	Waiting func(fingerprint string)
	// Trouble is told of each address that could not be asked.
	Trouble func(address string, err error)
}

// JoinResult says what was joined.
type JoinResult struct {
	SystemID    string `json:"systemId"`
	Controller  string `json:"controller"`
	Fingerprint string `json:"fingerprint"`
}

// Join makes this controller a member of an existing system. It waits until an administrator has approved its key.
func Join(ctx context.Context, cfg Config, opt JoinOptions) (JoinResult, error) {
	var res JoinResult
	if len(cfg.JoinPeers) == 0 {
		return res, fault.New(fault.Invalid, "no-peers", "join_peers is empty").Do("name the cluster address (host:9642) of a running controller in controller.yaml")
	}
	if _, err := identity.ParsePin(opt.Pin); err != nil {
		return res, err
	}
	d := dataDir(cfg.DataDir)
	nodeID, id, kek, err := joiner(d, cfg)
	if err != nil {
		return res, err
	}
	csr, err := certificate.NewRequest(id.key, certificate.Names{})
	if err != nil {
		return res, err
	}
	key, err := keyHash(id.key.Public())
	if err != nil {
		return res, err
	}
	res.Controller, res.Fingerprint = cfg.Name, hex.EncodeToString(key[:])
	opt.Key(res.Fingerprint)
	admission, err := consensus.Join(ctx, consensus.JoinOptions{
		Addresses: cfg.JoinPeers, Pin: opt.Pin, Token: opt.Token, Name: cfg.Name, NodeID: nodeID,
		Region: cfg.Region, Zone: cfg.Zone, Advertise: cfg.ClusterAddress(), CSR: csr, KEKPublic: kek.Public(), Version: cli.Version,
		Waiting: opt.Waiting, Trouble: opt.Trouble,
	})
	if err != nil {
		return res, err
	}
	res.SystemID = admission.ClusterID
	if err := d.writeChain(raw(admission.Chain), raw(admission.Bundle)); err != nil {
		return res, err
	}
	if err := d.finish(installation{SystemID: admission.ClusterID, NodeID: nodeID, Name: cfg.Name}); err != nil {
		return res, err
	}
	return res, os.Remove(d.path(joiningFile))
}

// joiningFile holds the node id of a join that has not ended: its token is bound to the key beside it, so a join that was
// interrupted goes on with the same key.
const joiningFile = "joining"

func joiner(d dataDir, cfg Config) (nodeID string, id *identityHolder, kek *keyring.KEK, err error) {
	if b, err := os.ReadFile(d.path(joiningFile)); err == nil {
		sealer, err := cfg.sealer()
		if err != nil {
			return "", nil, nil, err
		}
		key, err := d.readKey()
		if err != nil {
			return "", nil, nil, err
		}
		kek, err := keyring.LoadKEK(d.path("kek"), sealer)
		return string(b), &identityHolder{dir: d, key: key}, kek, err
	}
	if err := d.claim(); err != nil {
		return "", nil, nil, err
	}
	if id, kek, err = newController(d, cfg); err != nil {
		return "", nil, nil, err
	}
	nodeID = uuid.NewString()
	return nodeID, id, kek, atomicfile.Replace(d.path(joiningFile), []byte(nodeID), 0o600)
}
