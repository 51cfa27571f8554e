package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Node is one Cassandra node.
type Node struct {
	fleet.Node
	ETag   string            `json:"etag"`
	Labels map[string]string `json:"labels,omitempty"`
	// Rollout that it takes part in now; only where one node is read.
	Rollout *rollout.Part `json:"rollout,omitempty"`
	// Rotation that its ring is in now.
	Rotation *rotation.RotationPart `json:"rotation,omitempty"`
}

func nodeOf(n fleet.Node) Node { return Node{Node: n, ETag: frozenETag(n.Revision, n.Frozen)} }

type NodePath struct {
	ClusterPath
	Node string `path:"node" maxLength:"63"`
}

func (p NodePath) name() string { return resource.Node(p.Tenant, p.Cluster, p.Node) }

// Renewal says what was asked for: each store whose installed generation is lower moves when its turn comes.
type Renewal struct {
	Node       Node   `json:"node"`
	Generation uint64 `json:"generation" doc:"the renewal is done when each store has it installed and proven"`
}

// RenewBody asks for a renewal.
type RenewBody struct {
	Store  string `json:"store,omitempty" maxLength:"63" doc:"all stores of the node when empty"`
	Reason string `json:"reason,omitempty" maxLength:"1024"`
}

// CycleLinksBody asks for old connections to be ended.
type CycleLinksBody struct {
	Reason string `json:"reason,omitempty" maxLength:"1024"`
}

// NamesBody are names to carry.
type NamesBody struct {
	DNS []string `json:"dns,omitempty" maxItems:"64"`
	IPs []string `json:"ips,omitempty" maxItems:"64"`
}

// ReasonBody says why.
type ReasonBody struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" doc:"for the audit entry"`
}

func (s *server) nodes() {
	tags := []string{"nodes"}
	const base = "/v1/tenants/{tenant}/clusters/{cluster}/nodes"
	handle(s, s.watchable(huma.Operation{OperationID: "listNodes", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List nodes; - as the cluster reads across all"}), "node:list",
		func(ctx context.Context, in *struct {
			ClusterPath
			List
		}) (*PageOutput[Node], error) {
			if err := plainList(in.List, "nodes"); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, nodeOf, func(token string) ([]fleet.Node, string, error) {
				return s.Fleet.ListNodes(ctx, in.ClusterPath.name(), fleet.Page{Size: in.size(), Token: token})
			})
		})
	handle(s, huma.Operation{OperationID: "getNode", Method: http.MethodGet, Path: base + "/{node}", Tags: tags, Summary: "Get a node: its agent, Cassandra, stores, open move, and why it waits"}, "node:get",
		func(ctx context.Context, in *struct {
			NodePath
			Read
		}) (*One[Node], error) {
			return s.oneNode(ctx, in.name())
		})
	handle(s, huma.Operation{OperationID: "renewNode", Method: http.MethodPost, Path: base + "/{node}:renew", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Ask a node to take new certificates; it moves when its turn comes"}, "node:renew",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body RenewBody
		}) (*body[Renewal], error) {
			n, err := s.Fleet.GetNode(ctx, in.name())
			if err != nil {
				return nil, err
			}
			if in.ValidateOnly {
				return &body[Renewal]{Renewal{Node: nodeOf(n), Generation: n.Generation}}, nil
			}
			g, err := s.Fleet.RequestRenewal(ctx, in.name(), in.Body.Store, in.Body.Reason, actor(ctx))
			if err != nil {
				return nil, err
			}
			n, err = s.Fleet.GetNode(ctx, in.name())
			return &body[Renewal]{Renewal{Node: nodeOf(n), Generation: g}}, err
		})
	handle(s, huma.Operation{OperationID: "cycleNodeLinks", Method: http.MethodPost, Path: base + "/{node}:cycleLinks", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary:     "Ask a node to end its internode connections that live on certificates of before its last reload",
		Description: "One peer at a time, never while Cassandra streams; each peer must come back before the next one's turn. One node of a cluster at a time. Done when links.cycled of the node has reached the generation."}, "node:cycleLinks",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body CycleLinksBody
		}) (*body[Renewal], error) {
			if in.ValidateOnly {
				if err := s.Fleet.MayCycleLinks(ctx, in.name()); err != nil {
					return nil, err
				}
				n, err := s.Fleet.GetNode(ctx, in.name())
				return &body[Renewal]{Renewal{Node: nodeOf(n), Generation: n.Generation}}, err
			}
			g, err := s.Fleet.CycleLinks(ctx, in.name(), in.Body.Reason, actor(ctx))
			if err != nil {
				return nil, err
			}
			n, err := s.Fleet.GetNode(ctx, in.name())
			return &body[Renewal]{Renewal{Node: nodeOf(n), Generation: g}}, err
		})
	handle(s, huma.Operation{OperationID: "setNodeNames", Method: http.MethodPost, Path: base + "/{node}:setNames", Tags: tags,
		Summary:     "Replace the names that the node's certificates may carry",
		Description: "It holds for the next certificate; nothing moves now: ask for :renew to have it at once."}, "node:setNames",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			IfMatch string `header:"If-Match" doc:"etag that the node must still have"`
			Body    NamesBody
		}) (*One[Node], error) {
			if err := s.matches(ctx, in.name(), in.IfMatch); err != nil {
				return nil, err
			}
			names := fleet.Names{DNS: in.Body.DNS, IPs: in.Body.IPs}
			if in.ValidateOnly {
				_, err := names.Normalise()
				if err != nil {
					return nil, err
				}
				return s.oneNode(ctx, in.name())
			}
			if err := s.Fleet.SetNames(ctx, in.name(), names, actor(ctx)); err != nil {
				return nil, err
			}
			return s.oneNode(ctx, in.name())
		})
	s.nodeVerb("suspendNode", "suspend", "Close the agent's streams and refuse its claims until it is resumed; files stay", s.Fleet.Suspend)
	s.resumeNode()
	s.nodeTokens()
	s.nodeVerb("removeNode", "remove", "Revoke the agent's identity for good; files stay, and the node comes back only by a token made for rejoining", s.Fleet.Revoke)
	s.nodeFreeze("freezeNode", "freeze", "Let no effect begin on this node", func(ctx context.Context, node string, w Why) error {
		return s.Fleet.Freeze(ctx, node, w.Reason, w.Until, actor(ctx))
	})
	s.nodeFreeze("unfreezeNode", "unfreeze", "Lift the freeze of this node; wider ones stay", func(ctx context.Context, node string, w Why) error {
		return s.Fleet.Unfreeze(ctx, node, w.Reason, actor(ctx))
	})
	s.moves()
}

// matches refuses when the node is no longer what the caller saw.
func (s *server) matches(ctx context.Context, node, etagWanted string) error {
	n, err := s.Fleet.GetNode(ctx, node)
	if err != nil {
		return err
	}
	if etagWanted != "" && etagWanted != "*" && etagWanted != nodeOf(n).ETag {
		return fault.New(fault.Stale, "etag", "the node changed since you read it").Do("read it again, then decide")
	}
	return nil
}

func (s *server) nodeVerb(id, verb, summary string, do func(ctx context.Context, node, reason, actor string) error) {
	handle(s, huma.Operation{OperationID: id, Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}:" + verb, Tags: []string{"nodes"}, Summary: summary}, "node:"+verb,
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body ReasonBody
		}) (*One[Node], error) {
			if !in.ValidateOnly {
				if err := do(ctx, in.name(), in.Body.Reason, actor(ctx)); err != nil {
					return nil, err
				}
			}
			return s.oneNode(ctx, in.name())
		})
}

func (s *server) nodeFreeze(id, verb, summary string, do func(ctx context.Context, node string, w Why) error) {
	handle(s, huma.Operation{OperationID: id, Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}:" + verb, Tags: []string{"nodes"}, Summary: summary}, "node:"+verb,
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body Why
		}) (*One[Node], error) {
			if !in.ValidateOnly {
				if err := do(ctx, in.name(), in.Body); err != nil {
					return nil, err
				}
			}
			return s.oneNode(ctx, in.name())
		})
}

func (s *server) oneNode(ctx context.Context, name string) (*One[Node], error) {
	n, err := s.Fleet.GetNode(ctx, name)
	out := nodeOf(n)
	if err == nil {
		err = s.underWay(ctx, &out)
	}
	return &One[Node]{ETag: out.ETag, Body: out}, err
}

// Move is one claim and what became of it, with its proofs.
type Move = fleet.Move

func (s *server) moves() {
	handle(s, huma.Operation{OperationID: "listMoves", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}/moves", Tags: []string{"nodes"},
		Summary: "List the moves of a node, newest first, with the proofs of each"}, "node:get",
		func(ctx context.Context, in *struct {
			NodePath
			List
		}) (*PageOutput[Move], error) {
			if err := plainList(in.List, "moves"); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, func(m fleet.Move) Move { return m }, func(token string) ([]fleet.Move, string, error) {
				return s.Fleet.ListMoves(ctx, in.name(), fleet.Page{Size: in.size(), Token: token})
			})
		})
	handle(s, huma.Operation{OperationID: "listProofs", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}/proofs", Tags: []string{"nodes"},
		Summary: "List what neighbours saw on the node's ports, newest move first; pageSize counts moves"}, "node:get",
		func(ctx context.Context, in *struct {
			NodePath
			List
		}) (*PageOutput[fleet.Proof], error) {
			if err := plainList(in.List, "proofs"); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, func(p fleet.Proof) fleet.Proof { return p }, func(token string) ([]fleet.Proof, string, error) {
				moves, next, err := s.Fleet.ListMoves(ctx, in.name(), fleet.Page{Size: in.size(), Token: token})
				var out []fleet.Proof
				for _, m := range moves {
					out = append(out, m.Proofs...)
				}
				return out, next, err
			})
		})
}
