/*
 * Model B: the rotation of a ring's CA. README.md explains it from the beginning.
 *
 * O is the old CA, N the new one. Nodes 0, 1, 2 are members of the ring; node 3 may join in any phase, enrolled by CSM or as
 * a stranger that somebody started by hand. One registered application connects to the ring.
 *
 * An install is one step here, because model A (install.pml) proves that it may be seen as one: first the files change, later
 * Cassandra loads them for the connections that it accepts (server context), and later still for those that it opens (client
 * context). Everything may happen at any time, in any order, as often as it likes: messages are lost (nothing happens),
 * repeated (the same step again) and late (the step comes after others).
 *
 * Each safety gate has a name and a number. WITHOUT=<number> in the environment takes that gate out; GOAL=<number> makes the
 * checker look for a state that must be reachable. Every step prints one line "@ event node | sentence".
 */
#ifndef NODES
#define NODES 4
#endif

/* gates */
#define MEMBERS        1  /* a member that is down holds the phase */
#define PROVED         2  /* a neighbour's handshake counts, the file on disk does not */
#define DISTRIBUTED    3  /* no leaf of N before everybody trusts N */
#define REISSUED       4  /* O stays trusted until nobody shows a leaf of O */
#define UNENROLLED     5  /* a member without an agent holds the phase */
#define TWO_PEERS      6  /* whom one of two peers sees is a member */
#define JOINING        7  /* an enrolled node counts before the ring knows it */
#define JOIN_BUNDLE    8  /* who joins gets the anchors and the CA of the phase */
#define JOIN_CANARY    9  /* who joins gets no leaf of N before clients are known to trust it */
#define ENSURE        10  /* who was set aside starts with present stores only, and counts again */
#define ASIDE_DOWN    11  /* only a member that is down can be set aside */
#define CLAIM         12  /* an agent acts on a claim that was granted in this phase, never on a message */
#define OPEN_CLAIMS   13  /* a granted claim holds the phase until its agent has ended it */
#define APPLY_DECIDES 14  /* a gate is asked when a command is applied, not when it is sent */
#define LINKS         15  /* the client context counts: a cycled link has shown it */
#define FRESH_PROOF   16  /* a proof from before the last start does not count */
#define CLIENT_TRUST  17  /* one canary gets a leaf of N until every client was seen on it */
#define CLIENT_RETIRE 18  /* O stays trusted until every client's newest certificate is of N and in use */
#define CLIENT_BACK   19  /* N stays trusted until every client's newest certificate is of O and in use */
#define BACK_ORDER    20  /* rollback: leaves first, anchors after */
#define BACK_PROVED   21  /* rollback: N stays trusted until nobody shows a leaf of N */
#define NO_RETURN     22  /* no rollback once O is being withdrawn */
#define FILES         23  /* the files on disk are what was proved: Cassandra reads them again at moments of its own */
#define GATE(g) (without != g)

/* a node, as bits; s_* is what Cassandra shows and trusts where it accepts, c_* where it dials */
#define up       1
#define enrolled 2
#define gossip   4
#define d_O      8      /* on disk: O trusted, N trusted, the leaf is of N */
#define d_N      16
#define d_leafN  32
#define s_O      64
#define s_N      128
#define s_leafN  256
#define c_O      512
#define c_N      1024
#define c_leafN  2048
#define proved   4096   /* what this phase asks was proved in this phase */
#define aside    8192
#define canary   16384
#define claimed  32768  /* times the kind of move: */
#define GROW     1
#define LEAF_N   2
#define SHRINK   3
#define LEAF_O   4
#define UNGROW   5
#define stall    262144 /* only without OPEN_CLAIMS, times the kind of a move whose claim has run out while its agent stood still */
#define disk     (d_O|d_N|d_leafN)
#define server   (s_O|s_N|s_leafN)
#define client   (c_O|c_N|c_leafN)

int n[NODES];
#define has(i, b)   ((n[i] & (b)) != 0)
#define kind(i)     ((n[i] / claimed) & 7)
#define stalled(i)  (n[i] / stall)
#define set(i, b)   n[i] = n[i] | (b)
#define clear(i, b) n[i] = n[i] & ~(b)
#define setkind(i, k) n[i] = (n[i] & ~(7 * claimed)) | ((k) * claimed)
#define setdisk(i, b) n[i] = (n[i] & ~disk) | (b)
#define load_server(i) n[i] = (n[i] & ~server) | ((n[i] & disk) << 3)
#define load_client(i) n[i] = (n[i] & ~client) | ((n[i] & disk) << 6)

/* phases */
#define IDLE       0
#define DISTRIBUTE 1
#define REISSUE    2
#define RETIRE     3
#define DONE       4
#define BACK_LEAF  5
#define BACK_TRUST 6
#define BACK       7
byte phase;

/* The application: the bundle it uses and the newest one that was issued to it.
   0 trusts O, leaf of O; 1 trusts both, leaf of O; 2 trusts both, leaf of N; 3 trusts N, leaf of N. */
byte using, issued;
bool named;      /* an operator took it out of the count, by name and with a reason */
bool seen;       /* it was seen on a node with a leaf of N: it trusts N */
#define app_O     (using < 3)
#define app_N     (using > 0)
#define app_leafN (using > 1)

bool late;       /* one of the two peers that are asked has not heard of node 3 yet */
bool restored;   /* one machine was set back to an old image */
bool was_reissue;
byte command;    /* only without APPLY_DECIDES: a phase that a former leader has proposed, on its way */
byte without, goal;
bool nobody;     /* nobody joins in this run */
bool well;       /* nothing dies */
bool calm;       /* one node at most is down at a time: traces are plainer so */

/* what a phase wants on disk */
#define wanted(leaf) ((phase == IDLE || phase >= BACK_TRUST -> d_O : (phase == RETIRE || phase == DONE -> d_N : d_O|d_N)) | (leaf -> d_leafN : 0))
#define leaf_wanted (phase >= REISSUE && phase <= DONE)
#define may_leaf (phase != REISSUE || named || seen || !GATE(JOIN_CANARY))

/* i dials j: j shows a leaf that i trusts, and the other way round */
#define trusted(i, j) ((has(j, s_leafN) -> has(i, c_N) : has(i, c_O)) && (has(i, c_leafN) -> has(j, s_N) : has(j, s_O)))
#define cut_off(i, j) (has(i, up) && has(j, up) && !(trusted(i, j) && trusted(j, i)))
#define app_lost(i)   (has(i, up) && !((has(i, s_leafN) -> app_N : app_O) && (app_leafN -> has(i, s_N) : has(i, s_O))))
#define SAY_CUT(i, j) if :: cut_off(i, j) -> printf("@ OUTAGE %d | nodes %d and %d are both alive and do not trust each other\n", i, i, j) :: else fi

/* The safety property, asked after every step. The application may lose one node (the canary), not more. */
#if NODES == 4
#define ring_cut (cut_off(0,1) || cut_off(0,2) || cut_off(0,3) || cut_off(1,2) || cut_off(1,3) || cut_off(2,3))
#define lost ((app_lost(0) -> 1 : 0) + (app_lost(1) -> 1 : 0) + (app_lost(2) -> 1 : 0) + (app_lost(3) -> 1 : 0))
#define all(P) (P(0) && P(1) && P(2) && P(3))
#define EACH(E) :: E(0) :: E(1) :: E(2) :: E(3)
#define JOINER 3
#else
#define ring_cut (cut_off(0,1) || cut_off(0,2) || cut_off(1,2))
#define lost ((app_lost(0) -> 1 : 0) + (app_lost(1) -> 1 : 0) + (app_lost(2) -> 1 : 0))
#define all(P) (P(0) && P(1) && P(2))
#define EACH(E) :: E(0) :: E(1) :: E(2)
#define JOINER 2
#endif
/* The members of the beginning are alike, so the checker keeps them sorted: a sixth of the states. A "@ swap" line tells the
   reader of a trace who is who from there on. */
#define SWAP(i, j) if :: n[i] > n[j] -> n[i] = n[i] ^ n[j]; n[j] = n[i] ^ n[j]; n[i] = n[i] ^ n[j]; printf("@ swap %d %d\n", i, j) :: else fi
inline sort() {
	SWAP(0, 1);
#if NODES == 4
	SWAP(1, 2); SWAP(0, 1)
#endif
}
/* the end of every step */
inline done() { check(); sort() }
inline check() {
	if
	:: ring_cut ->
		SAY_CUT(0, 1); SAY_CUT(0, 2); SAY_CUT(1, 2);
#if NODES == 4
		SAY_CUT(0, 3); SAY_CUT(1, 3); SAY_CUT(2, 3);
#endif
		assert(false)
	:: else
	fi;
	if
	:: !named && lost > 1 -> printf("@ OUTAGE app | the application has lost more than one node\n"); assert(false)
	:: else
	fi
}

/* The gate of each phase: every member that counts is up, enrolled, proved and has no open claim. */
#define counts(i) (!has(i, aside) && (has(i, gossip) || (GATE(JOINING) && has(i, enrolled))) \
	&& (i != JOINER || !late || GATE(TWO_PEERS)) && (has(i, enrolled) || GATE(UNENROLLED)) && (has(i, up) || GATE(MEMBERS)))
#define ready(i) (!counts(i) || (has(i, up) && has(i, enrolled) && has(i, proved) && kind(i) == 0))
#define gate_distributed (!GATE(DISTRIBUTED) || all(ready))
#define gate_reissued    ((!GATE(REISSUED) || all(ready)) && (named || !GATE(CLIENT_RETIRE) || (issued > 1 && using == issued)))
#define gate_back        ((!GATE(BACK_PROVED) || all(ready)) && (named || !GATE(CLIENT_BACK) || (issued < 2 && using == issued)))
#define next_phase ( \
	(phase == DISTRIBUTE && gate_distributed -> REISSUE : \
	(phase == REISSUE && gate_reissued -> RETIRE : \
	(phase == RETIRE && all(ready) -> DONE : \
	(phase == BACK_LEAF && gate_back -> BACK_TRUST : \
	(phase == BACK_TRUST && all(ready) -> BACK : phase))))))

inline enter(p) {
	phase = p;
	n[0] = n[0] & ~(proved|canary); n[1] = n[1] & ~(proved|canary); n[2] = n[2] & ~(proved|canary);
#if NODES == 4
	n[3] = n[3] & ~(proved|canary);
#endif
	seen = false;
	was_reissue = was_reissue || (phase == REISSUE && !GATE(CLAIM));
	printf("@ phase %d | the replicated state enters phase %d\n", phase, phase);
	assert(goal != phase);
	sort()
}

/* ---- Cassandra ---- */
inline crash(i) { d_step { has(i, up) && !well && (!calm || (has(0, up) && has(1, up) && has(NODES - 2, up))) ->
	clear(i, up|server|client); printf("@ crash %d | Cassandra on node %d dies\n", i, i); done() } }
inline start(i) { d_step { !has(i, up) && has(i, enrolled) && (!has(i, aside) || !GATE(ENSURE)) ->
	if :: !has(i, gossip) -> late = true :: else fi;
	set(i, up|gossip); load_server(i); load_client(i); clear(i, aside);
	if :: GATE(FRESH_PROOF) -> clear(i, proved) :: else fi;
	printf("@ start %d | Cassandra on node %d starts with the stores that lie there\n", i, i); done() } }
inline reload(i) { d_step { has(i, up) && ((n[i] & disk) << 3) != (n[i] & server) ->
	load_server(i); printf("@ reload %d | node %d loads its stores for the connections it accepts\n", i, i); done() } }
inline cycle(i) { d_step { has(i, up) && ((n[i] & disk) << 6) != (n[i] & client) ->
	load_client(i); printf("@ cycle %d | node %d dials anew, with its present stores\n", i, i); done() } }

/* ---- the agent ---- */
#define move_of(i) ( \
	(phase == DISTRIBUTE && !has(i, d_N) -> GROW : \
	(phase == REISSUE && !has(i, d_leafN) && (!GATE(CLIENT_TRUST) || named || seen || has(i, canary) || !any_canary) -> LEAF_N : \
	(phase == RETIRE && has(i, d_O) -> SHRINK : \
	(phase == BACK_LEAF && has(i, d_leafN) -> LEAF_O : \
	(phase == BACK_TRUST && has(i, d_N) -> UNGROW : 0))))))
#if NODES == 4
#define any_canary (has(0, canary) || has(1, canary) || has(2, canary) || has(3, canary))
#else
#define any_canary (has(0, canary) || has(1, canary) || has(2, canary))
#endif
inline claim(i) { d_step { has(i, enrolled) && !has(i, aside) && kind(i) == 0 && move_of(i) != 0 ->
	setkind(i, move_of(i));
	if :: phase == REISSUE && !seen && !named -> set(i, canary) :: else fi;
	printf("@ claim %d | node %d is granted move %d\n", i, i, kind(i)); done() } }
inline apply_move(i, k) {
	if
	:: k == GROW -> set(i, d_N)
	:: k == LEAF_N -> set(i, d_leafN)
	:: k == SHRINK -> clear(i, d_O)
	:: k == LEAF_O -> clear(i, d_leafN)
	:: k == UNGROW -> clear(i, d_N)
	:: else
	fi
}
inline install(i) { d_step { kind(i) != 0 ->
	apply_move(i, kind(i));
	printf("@ install %d | node %d writes the stores of move %d\n", i, i, kind(i)); done() } }
/* the agent says how it ended: done, refused, rolled back, or it was restarted and has forgotten */
inline end(i) { d_step { kind(i) != 0 ->
	setkind(i, 0); printf("@ end %d | the claim of node %d is closed by its agent\n", i, i); done() } }
/* A neighbour looks: what the phase asks is in force on node i. */
#define shows(i, x_O, x_N, x_leafN) ( \
	(phase == DISTRIBUTE -> has(i, x_N) : \
	(phase == REISSUE -> has(i, x_leafN) : \
	(phase == RETIRE -> !has(i, x_O) : \
	(phase == BACK_LEAF -> !has(i, x_leafN) : \
	(phase == BACK_TRUST -> !has(i, x_N) : false))))))
#define is_shown(i) (GATE(PROVED) -> (shows(i, s_O, s_N, s_leafN) && (!GATE(LINKS) || shows(i, c_O, c_N, c_leafN)) && (!GATE(FILES) || shows(i, d_O, d_N, d_leafN))) : shows(i, d_O, d_N, d_leafN))
inline prove(i) { d_step { has(i, up) && has(i, enrolled) && !has(i, aside) && !has(i, proved) && kind(i) == 0 && is_shown(i) ->
	set(i, proved); printf("@ prove %d | a neighbour proves node %d for this phase\n", i, i); done() } }

/* ---- people and machines ---- */
inline set_aside(i) { d_step { phase != IDLE && has(i, enrolled) && !has(i, aside) && (!has(i, up) || !GATE(ASIDE_DOWN)) ->
	set(i, aside); clear(i, proved); setkind(i, 0); printf("@ aside %d | an operator sets node %d aside, by name and with a reason\n", i, i); done() } }
inline ensure(i) { d_step { has(i, aside) && !has(i, up) && GATE(ENSURE) ->
	setdisk(i, wanted(leaf_wanted && (may_leaf || has(i, canary))));
	clear(i, aside);
	printf("@ ensure %d | before Cassandra starts on node %d its stores are brought to this phase; it counts again\n", i, i); done() } }
inline restore(i) { d_step { !restored && has(i, enrolled) && !has(i, up) && phase == DISTRIBUTE && has(i, d_N) ->
	restored = true; setdisk(i, d_O); printf("@ restore %d | the machine of node %d is set back to an image from before\n", i, i); done() } }

/* what only happens without a gate */
inline stale(i) { d_step { !GATE(CLAIM) && was_reissue && phase != REISSUE && has(i, enrolled) && !has(i, d_leafN) ->
	set(i, d_leafN); printf("@ stale %d | node %d acts on a message of an older phase: it installs a leaf of the new CA\n", i, i); done() } }
inline lapse(i) { d_step { !GATE(OPEN_CLAIMS) && kind(i) != 0 && stalled(i) == 0 ->
	n[i] = n[i] + kind(i) * stall; setkind(i, 0); printf("@ lapse %d | the claim of node %d runs out; its agent stands still in the middle of it\n", i, i); done() } }
inline resume(i) { d_step { stalled(i) != 0 ->
	apply_move(i, stalled(i)); n[i] = n[i] & (stall - 1); printf("@ resume %d | the agent of node %d goes on with the move whose claim ran out\n", i, i); done() } }

active proctype system() {
	c_code { now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0; now.goal = getenv("GOAL") ? atoi(getenv("GOAL")) : 0;
		now.named = getenv("APP") == 0; now.nobody = getenv("JOIN") == 0; now.calm = getenv("CALM") != 0; now.well = getenv("WELL") != 0; };
	d_step {
		n[0] = up|enrolled|gossip|d_O|s_O|c_O;
		n[1] = n[0];
#if NODES == 4
		n[2] = n[0];
#endif
	}
	do
	EACH(crash) EACH(start) EACH(reload) EACH(cycle) EACH(claim) EACH(install) EACH(end) EACH(prove) EACH(set_aside) EACH(ensure) EACH(restore)

	/* node 3: enrolled by CSM, or a stranger who can only come up while everybody who is up trusts him */
	:: d_step { !nobody && !has(JOINER, enrolled|gossip) ->
		set(JOINER, enrolled);
		setdisk(JOINER, (GATE(JOIN_BUNDLE) -> wanted(leaf_wanted && may_leaf) : d_O));
		printf("@ enroll %d | node %d is enrolled and gets its first stores; its Cassandra has not started\n", JOINER, JOINER) }
	:: d_step { !nobody && !has(JOINER, enrolled|gossip) && phase <= DISTRIBUTE ->
		set(JOINER, up|gossip|d_O|s_O|c_O); late = true;
		printf("@ stranger %d | somebody starts node %d with stores of the old CA, without an agent\n", JOINER, JOINER); done() }
	:: d_step { late -> late = false; printf("@ gossip %d | both peers have heard of node %d\n", JOINER, JOINER) }

	/* the application: fetches a bundle, installs it some time later, is seen */
	:: d_step { !named && phase != IDLE && issued != (phase == DISTRIBUTE || phase == BACK_LEAF || phase == BACK_TRUST -> 1 : (phase == BACK -> 0 : (phase == DONE -> 3 : 2))) ->
		issued = (phase == DISTRIBUTE || phase == BACK_LEAF || phase == BACK_TRUST -> 1 : (phase == BACK -> 0 : (phase == DONE -> 3 : 2)));
		printf("@ fetch app | the application fetches bundle %d\n", issued) }
	:: d_step { !named && using != issued ->
		using = issued; printf("@ use app | the application now uses bundle %d\n", using); check() }
	:: d_step { !named && !seen && phase == REISSUE && app_N && any_canary && (
#define met(i) (has(i, up) && has(i, canary) && has(i, s_leafN))
		met(0) || met(1) || met(2)
#if NODES == 4
		|| met(3)
#endif
		) -> seen = true; printf("@ seen app | the application has connected to the canary: it trusts the new CA\n") }
	:: d_step { !named && phase != IDLE ->
		named = true; using = 0; issued = 0; seen = false; printf("@ name app | an operator takes the application out of the count, by name and with a reason\n") }

	/* the replicated state machine */
	:: d_step { phase == IDLE -> enter(DISTRIBUTE) }
	:: d_step { GATE(APPLY_DECIDES) && next_phase != phase -> enter(next_phase) }
	:: d_step { phase == DISTRIBUTE || phase == REISSUE || (phase == RETIRE && !GATE(NO_RETURN)) ->
		printf("@ rollback - | an operator rolls back\n");
		if :: GATE(BACK_ORDER) -> enter(BACK_LEAF) :: else -> enter(BACK_TRUST) fi }

	/* what only happens without a gate */
	:: d_step { !GATE(APPLY_DECIDES) && command == 0 && next_phase != phase -> command = next_phase; printf("@ propose - | the leader sees the gate of phase %d open and proposes it\n", command) }
	:: d_step { !GATE(APPLY_DECIDES) && command != 0 -> enter(command); printf("@ late - | the proposal is applied, without a look\n"); command = 0 }
	EACH(stale) EACH(lapse) EACH(resume)
	od
}
