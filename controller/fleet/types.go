package fleet

import (
	"time"
)

// Names are the subject alternative names that a node's certificates carry: DNS names in lower case and addresses in
// canonical form, each list sorted and without repeats. The node's SPIFFE ID is added by who signs.
type Names struct {
	DNS []string `json:"dns,omitempty" doc:"DNS names"`
	IPs []string `json:"ips,omitempty" doc:"IP addresses"`
}

// Cluster is one Cassandra ring.
type Cluster struct {
	Name          string      `json:"name"`
	UID           string      `json:"uid"`
	CassandraName string      `json:"cassandraName,omitempty" doc:"cluster_name of cassandra.yaml"`
	Authority     string      `json:"authority" doc:"authority that signs for its nodes"`
	Region        string      `json:"region,omitempty" doc:"issuers of this region are preferred"`
	TrustDomain   string      `json:"trustDomain"`
	BundleVersion uint64      `json:"bundleVersion"`
	Anchors       []string    `json:"anchors,omitempty" doc:"SHA-256 of each trust anchor"`
	Nodes         int         `json:"nodes" doc:"number of nodes"`
	Connected     int         `json:"connected" doc:"nodes whose agent has an open stream to some controller"`
	Moving        []string    `json:"moving,omitempty" doc:"nodes with an open claim"`
	Frozen        *Freeze     `json:"frozen,omitempty"`
	Onboarded     time.Time   `json:"onboardTime,omitzero" doc:"since when stores of another CA may take our anchors"`
	Released      *Release    `json:"released,omitempty"`
	Conditions    []Condition `json:"conditions,omitempty"`
	CreateTime    time.Time   `json:"createTime"`
	UpdateTime    time.Time   `json:"updateTime"`
	Revision      uint64      `json:"revision"`
}

// Release says who let a cluster go.
type Release struct {
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// ClusterSpec asks for a cluster.
type ClusterSpec struct {
	Name          string
	CassandraName string
	Authority     string
	Region        string
}

// Node is one Cassandra node, which is neither its name nor its address.
type Node struct {
	Name        string `json:"name"`
	UID         string `json:"uid"`
	Cluster     string `json:"cluster"`
	Incarnation uint64 `json:"incarnation" doc:"counts up each time the node is replaced; 0 before the first join"`
	State       string `json:"state" enum:"pending,active,suspended,revoked" doc:"state of the agent's identity"`
	StateReason string `json:"stateReason,omitempty"`
	Names       Names  `json:"names" doc:"what its certificates carry"`
	// Generation of its target; UpdateTime of any change.
	Generation uint64      `json:"generation"`
	Agent      AgentView   `json:"agent"`
	Instance   Instance    `json:"instance"`
	Stores     []Store     `json:"stores,omitempty"`
	Links      *NodeLinks  `json:"links,omitempty" doc:"internode connections that live on certificates of before the last reload"`
	Claim      *Move       `json:"claim,omitempty" doc:"the open claim, if there is one"`
	Frozen     *Freeze     `json:"frozen,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
	// Why says in a sentence what the node is waiting for, or that it is as it should be.
	Why        string    `json:"why"`
	CreateTime time.Time `json:"createTime"`
	UpdateTime time.Time `json:"updateTime"`
	Revision   uint64    `json:"revision"`

	last *Move // the newest, where its agent refused it
}

// States of an agent's identity.
const (
	Pending   = "pending"
	Active    = "active"
	Suspended = "suspended"
	Revoked   = "revoked"
)

// AgentView is what is known of a node's agent.
type AgentView struct {
	Version    string    `json:"version,omitempty"`
	Protocol   uint32    `json:"protocol,omitempty"`
	OS         string    `json:"os,omitempty"`
	Arch       string    `json:"arch,omitempty"`
	Mode       string    `json:"mode,omitempty" enum:"observe,stage,manage"`
	Hold       string    `json:"hold,omitempty" doc:"reason of a local HOLD file"`
	Connected  bool      `json:"connected" doc:"its stream is open, and the controller that holds it answers"`
	Controller string    `json:"controller,omitempty" doc:"controller that holds, or last held, its stream"`
	Transition time.Time `json:"transitionTime,omitzero" doc:"when it last connected or disconnected"`
	Joined     time.Time `json:"joinTime,omitzero"`
	orphaned   bool      // the controller that held its stream does not answer
}

// Instance is what the agent understood of Cassandra.
type Instance struct {
	ClusterName      string    `json:"clusterName,omitempty"`
	HostID           string    `json:"hostId,omitempty"`
	ConfigPath       string    `json:"configPath,omitempty"`
	ListenAddress    string    `json:"listenAddress,omitempty"`
	BroadcastAddress string    `json:"broadcastAddress,omitempty"`
	RPCAddress       string    `json:"rpcAddress,omitempty"`
	StoragePort      uint32    `json:"storagePort,omitempty"`
	NativePort       uint32    `json:"nativePort,omitempty"`
	Datacenter       string    `json:"datacenter,omitempty"`
	Rack             string    `json:"rack,omitempty"`
	Version          string    `json:"version,omitempty"`
	Running          bool      `json:"running"`
	Findings         []Finding `json:"findings,omitempty"`
	Reload           *Reload   `json:"reload,omitempty" doc:"how Cassandra is made to read its stores again"`
}

// Finding is something wrong or worth knowing on a node, with its remedy.
type Finding struct {
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"`
}

// Store is the wish for one keystore and truststore pair, and what is there.
type Store struct {
	Name   string `json:"name"`
	Format string `json:"format,omitempty" enum:"pkcs12,jks,pem"`
	State  string `json:"state" doc:"absent, foreign, installed-unproven, proven, rolled-back, contested, moving, failed"`
	// Generation wanted and installed; a store whose installed generation is lower moves.
	Generation uint64 `json:"generation"`
	Installed  uint64 `json:"installed"`
	Reason     string `json:"reason,omitempty" doc:"why the newest generation was made"`
	// Leaf that should be in place, the one that is, and the last one that a neighbour proved.
	Wanted         string    `json:"wantedSha256,omitempty"`
	Leaf           string    `json:"leafSha256,omitempty"`
	Proven         string    `json:"provenSha256,omitempty"`
	NotAfter       time.Time `json:"notAfter,omitzero"`
	RenewAt        time.Time `json:"renewAt,omitzero"`
	KeystorePath   string    `json:"keystorePath,omitempty"`
	TruststorePath string    `json:"truststorePath,omitempty"`
	KeystoreHash   string    `json:"keystoreSha256,omitempty"`
	TruststoreHash string    `json:"truststoreSha256,omitempty"`
	Ports          []Port    `json:"ports,omitempty"`
	Detail         string    `json:"detail,omitempty"`
	// Unproved: a renewal was handed out and its proof is outstanding; other nodes of the cluster wait for it.
	Unproved bool `json:"unproved,omitempty"`
}

// Port is a TLS port of a node.
type Port struct {
	Kind    string `json:"kind" enum:"internode,cql"`
	Address string `json:"address"`
	Port    uint32 `json:"port"`
}

// Move is one claim and what became of it.
type Move struct {
	Claim       string    `json:"claim"`
	Node        string    `json:"node"`
	Incarnation uint64    `json:"incarnation"`
	Store       string    `json:"store"`
	Kind        string    `json:"kind" enum:"first,renew,trust,shrink,take-over,give-back"`
	Generation  uint64    `json:"generation"`
	State       string    `json:"state" enum:"open,closed,lapsed"`
	Outcome     string    `json:"outcome,omitempty" doc:"proven, unproven, rolled-back, refused, failed; empty while open or when it was never reported"`
	Before      string    `json:"beforeSha256,omitempty"`
	After       string    `json:"afterSha256,omitempty"`
	Certificate string    `json:"certificate,omitempty"`
	Detail      string    `json:"detail,omitempty"`
	Seconds     float64   `json:"seconds,omitempty" doc:"as the agent measured it"`
	Opened      time.Time `json:"openTime"`
	Expires     time.Time `json:"expireTime"`
	Closed      time.Time `json:"closeTime,omitzero"`
	Proofs      []Proof   `json:"proofs,omitempty"`
}

// Proof is one probe of one port.
type Proof struct {
	Task      string    `json:"task"`
	Prober    string    `json:"prober" doc:"node whose agent probed; the node itself for its own proofs"`
	Port      Port      `json:"port"`
	Verdict   string    `json:"verdict" doc:"accepted, refused, unknown, wrong-leaf, down; pending while not answered"`
	Authority string    `json:"authority,omitempty" doc:"authority whose certificate was offered; empty: the prober's own"`
	Asked     bool      `json:"certificateAsked,omitempty" doc:"the port asked for a client certificate"`
	Anchor    string    `json:"anchorSha256,omitempty" doc:"anchor that the served chain led to"`
	Expected  string    `json:"expectedSha256,omitempty"`
	Served    string    `json:"servedSha256,omitempty"`
	Millis    int64     `json:"millis,omitempty"`
	Detail    string    `json:"detail,omitempty"`
	Begun     time.Time `json:"askTime,omitzero"`
	Deadline  time.Time `json:"deadline,omitzero"`
	Time      time.Time `json:"time,omitzero"`
}

// TokenSpec asks for a join token. Node is the short name of the node that it is bound to, Names what that node's
// certificates may carry (needed when the node is new; must equal what is recorded when it is not, or be empty).
type TokenSpec struct {
	Node  string
	Names Names
	// TTL 0 is DefaultTokenTTL; Uses 0 is 1.
	TTL  time.Duration
	Uses int
	// Rejoin allows a node that has joined before to be replaced: incarnation + 1, the old identity is revoked.
	Rejoin bool
}

// Token is what is known of a join token, which is never the token itself.
type Token struct {
	Name   string `json:"name"`
	Node   string `json:"node"`
	Method string `json:"method"`
	Names  Names  `json:"names"`
	Uses   int    `json:"uses"`
	Used   int    `json:"used"`
	State  string `json:"state" enum:"open,used,expired,revoked"`
	Rejoin bool   `json:"rejoin,omitempty"`
	// Confirmed is how the addresses of who joined by it last were confirmed.
	Confirmed string    `json:"confirmed,omitempty" doc:"how the addresses of who joined by it were confirmed: by the gossip of peers, by a person, or by the token alone, and why"`
	Creator   string    `json:"creator"`
	Created   time.Time `json:"createTime"`
	Expires   time.Time `json:"expireTime"`
}

// Freeze says that no effect may begin in a scope.
type Freeze struct {
	Scope  string    `json:"scope" doc:"system, or the name of a tenant, cluster or node"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero" doc:"zero: until it is lifted"`
	// Expiring stores: those that CSM wrote and that end within the freeze, or, where it has no end, within 21 days.
	Expiring    int       `json:"expiring,omitempty" doc:"stores that expire under it; said by the status of the system"`
	FirstExpiry time.Time `json:"firstExpireTime,omitzero"`
	Alarm       string    `json:"alarm,omitempty" doc:"what will expire under it, in words"`
}

// Alarm is something that should not have been seen.
type Alarm struct {
	Revision uint64    `json:"revision"`
	Kind     string    `json:"kind" doc:"token-reused, copied-state, expires-frozen, removal-proposed"`
	Resource string    `json:"resource"`
	Message  string    `json:"message"`
	Time     time.Time `json:"time"`
}

// Page asks for a part of a list: Size entries (100 when 0, at most 1000) after Token.
type Page struct {
	Size  int
	Token string
}

// System is the scope of a freeze of everything.
const System = "system"
