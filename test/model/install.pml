/*
 * Model A: one install on one node. README.md explains it from the beginning.
 *
 * The agent replaces a truststore and a keystore under a running Cassandra, which may read them at moments nobody controls: at
 * its poll, at a handshake that finds no cached context (keystore first, truststore later: a rename may fall in between),
 * at a restart, at reloadssl. The agent may be killed before each step and settles what it finds. Whatever pair is loaded must
 * trust, and be trusted by, each pair that any other member may have loaded at that time.
 *
 * Each safety gate has a name and a number: WITHOUT=<number> in the environment takes it out; GOAL=<number> makes the checker
 * look for a state that must be reachable.
 */

/* gates */
#define RENAME        1  /* files are replaced by rename: nobody sees half a file */
#define PREFLIGHT_NEW 2  /* the new pair is checked in memory for everything that Cassandra does not look at */
#define PREFLIGHT_OLD 3  /* nothing begins where the old pair could not be put back */
#define NOT_MIXED     4  /* trust never shrinks in the move that swaps the leaf */
#define BASELINE      5  /* a handshake before the first change fills Cassandra's cache */
#define TRUST_FIRST   6  /* truststore, then keystore */
#define KEYS_BACK     7  /* rollback: keystore, then truststore */
#define JOURNAL       8  /* what old and new are is on disk before the first rename */
#define BY_DISK       9  /* recovery believes the files, not the journal */
#define PROVE        10  /* the served leaf is looked at, reloadssl's exit code is not believed */
#define NEIGHBOUR    11  /* another node proves the move, with a certificate of the CA that is added */
#define COMMITTED    12  /* the ring counts the move when the agent has committed it, not when a neighbour has seen it */
#define LINKS        13  /* ... and when a link dialled afterwards has come back: the context for dialling is new as well */
#define RETREAT      14  /* a proved pair is given up, unasked, only for one of the same CA and anchors */
#define GATE(g) (without != g)

/* what a move does */
#define GROW     1  /* truststore: O -> O and N */
#define SWAP     2  /* keystore: leaf of O -> leaf of N */
#define BOTH     3  /* both of them in one move */
#define SHRINK   4  /* truststore: O and N -> N */
#define SURPRISE 5  /* SWAP to a keystore that Cassandra cannot load, for a reason that no check knows */
#define WORN     6  /* SWAP where the old keystore is broken on disk, and good in Cassandra's memory */
#define MIXED    7  /* keystore and truststore: from O to N, and O goes. Refused by NOT_MIXED */
#define UNFIT    8  /* SWAP to a keystore that nobody would accept. Refused by PREFLIGHT_NEW */
#define RENEW    9  /* keystore: another leaf of O */

#define OLD    0
#define NEW    1
#define BROKEN 2

byte move;
byte keys, trust;                    /* on disk */
bool keys_later, trust_later;        /* their time of change is not the one that Cassandra remembers */
bool legacy;                         /* 4.0 to 4.1.3: reloadssl looks at the time of change first */

#define SERVER 0
#define CLIENT 1
#define NONE   99
byte context[2] = NONE;              /* what is cached: keys + 4 * trust */
byte half[2] = NONE;                 /* a context that is being built: the keystore was read; with 4 more, the truststore too */

bool journal, going_back, touched;
byte record;                         /* the pair that the agent has committed */
bool seen, proven, counted;          /* a neighbour has seen the new pair in force; the agent has reported it; the ring believes it: the others may go on */
bool alone;                          /* the only member: nobody else can prove */
bool ready;                          /* the move has been chosen */
byte without, goal;

/* which files the move changes, and the contexts before and after it */
#define new_keys    (move != GROW && move != SHRINK)
#define new_trust   (move == GROW || move == BOTH || move == SHRINK || move == MIXED)
#define new_context ((new_keys -> NEW : OLD) + 4 * (new_trust -> NEW : OLD))

/* goals: states that must be reachable */
#define COUNTED     1
#define ROLLED_BACK 2
#define RECOVERED   3
#define RETREATED   4

/* what the other members may show and trust, as the rotation's gates (model B) allow it */
#define others_show_O  (move != SHRINK && !(move == SWAP && counted))
#define others_show_N  (move == SWAP || move == SHRINK || move == MIXED || move == SURPRISE || move == WORN || move == UNFIT || (counted && move != RENEW))
#define others_trust_O (move != SHRINK && !(move == SWAP && counted))
#define others_trust_N (move != GROW || counted)
/* what a pair shows and trusts */
#define leaf_N(k)   (move == SHRINK || (move != GROW && move != RENEW && k == NEW))
#define trusts_O(t) (!((move == SHRINK || move == MIXED) && t == NEW))
#define trusts_N(t) (!((move == GROW || move == BOTH) && t == OLD))
#define whole(k, t) (k != BROKEN && t != BROKEN && !((move == UNFIT || move == SURPRISE) && k == NEW) && !(move == WORN && k == OLD && touched))
#define loads(k, t) (k != BROKEN && t != BROKEN && !(move == SURPRISE && k == NEW))
#define fits(k, t)  ((leaf_N(k) -> others_trust_N : others_trust_O) \
	&& (!others_show_O || trusts_O(t)) && (!others_show_N || trusts_N(t)))
#define good(k, t)  (whole(k, t) && fits(k, t))

/* A pair on disk trusts itself: the tools on that node use it (cqlsh, the agent's own handshakes), and so may a member that is
   in the same step of the same move. */
inline lies_there() {
	if
	:: keys != BROKEN && trust != BROKEN && !(leaf_N(keys) -> trusts_N(trust) : trusts_O(trust)) ->
		printf("@ OUTAGE | keystore %d lies beside truststore %d, which does not trust its leaf\n", keys, trust); assert(false)
	:: else
	fi
}
inline use(k, t) {
	if
	:: !good(k, t) -> printf("@ OUTAGE | Cassandra has loaded keystore %d with truststore %d: it is cut off\n", k, t); assert(false)
	:: else
	fi
}
#define say(what) printf("@ %s\n", what)

/* ---- Cassandra ---- */
inline read_keys(side) { d_step { context[side] == NONE && half[side] == NONE -> half[side] = keys;
	printf("@ cassandra | context %d is being built: keystore %d is read\n", side, keys) } }
inline read_trust(side) { d_step { half[side] < 4 -> half[side] = 4 + half[side] + 4 * trust;
	printf("@ cassandra | context %d is being built: truststore %d is read\n", side, trust) } }
/* another handshake may have been quicker: then its context stays */
inline built(side) { d_step { half[side] >= 4 && half[side] != NONE ->
	half[side] = half[side] - 4;
	if
	:: context[side] == NONE ->
		printf("@ cassandra | context %d is complete\n", side);
		use(half[side] % 4, half[side] / 4);
		if :: loads(half[side] % 4, half[side] / 4) -> context[side] = half[side] :: else fi
	:: else
	fi;
	half[side] = NONE } }
inline drop() { context[SERVER] = NONE; context[CLIENT] = NONE }

active proctype cassandra() {
	ready;
end:	do
	:: read_keys(SERVER) :: read_keys(CLIENT) :: read_trust(SERVER) :: read_trust(CLIENT) :: built(SERVER) :: built(CLIENT)
	/* one changed file a poll; the time is remembered before anything is checked */
	:: d_step { keys_later || trust_later ->
		if :: keys_later -> keys_later = false :: else -> trust_later = false fi;
		if :: loads(keys, trust) -> drop(); printf("@ cassandra | its poll finds a changed file and drops the contexts\n")
		:: else -> printf("@ cassandra | its poll cannot load the files and keeps the contexts\n") fi }
	/* a restart; not within the seconds in which a file lies there that nobody could know to be unloadable (README, what is left out) */
	:: d_step { move != SURPRISE && (move != WORN || touched) ->
		printf("@ cassandra | restarts: keystore %d, truststore %d\n", keys, trust);
		drop(); half[SERVER] = NONE; half[CLIENT] = NONE; keys_later = false; trust_later = false; use(keys, trust) }
	/* the ring believes the move: the other members may go on */
	:: d_step { !counted && (proven || (seen && !GATE(COMMITTED))) &&
		(!GATE(LINKS) || (half[CLIENT] == NONE && context[CLIENT] == new_context)) ->
		counted = true; printf("@ ring | counts the move: the others may go on\n");
		assert(goal != COUNTED);
		if :: context[SERVER] != NONE -> use(context[SERVER] % 4, context[SERVER] / 4) :: else fi;
		if :: context[CLIENT] != NONE -> use(context[CLIENT] % 4, context[CLIENT] / 4) :: else fi }
	od
}

/* ---- the agent ---- */
inline write_keys(v) {
	if
	:: GATE(RENAME) || v == OLD -> skip
	:: else -> d_step { keys = BROKEN; keys_later = true; touched = true; printf("@ agent | the keystore is half written\n") }; may_die()
	fi;
	d_step { keys = v; keys_later = true; touched = true; printf("@ agent | keystore %d is in place\n", v); lies_there() }
}
inline write_trust(v) {
	if
	:: GATE(RENAME) || v == OLD -> skip
	:: else -> d_step { trust = BROKEN; trust_later = true; touched = true; printf("@ agent | the truststore is half written\n") }; may_die()
	fi;
	d_step { trust = v; trust_later = true; touched = true; printf("@ agent | truststore %d is in place\n", v); lies_there() }
}
inline may_die() {
	if
	:: true -> skip
	:: printf("@ agent | is killed and starts again\n"); goto recover
	fi
}
/* A context takes milliseconds to build, a reload or the start of an agent a second: what was begun before is complete after. */
inline settle() { half[SERVER] == NONE && half[CLIENT] == NONE }
/* reloadssl answers 0 whatever it did */
inline reload() {
	d_step {
		if
		:: (!legacy || keys_later || trust_later) && loads(keys, trust) -> drop(); printf("@ agent | reloadssl: the contexts are dropped\n")
		:: else -> printf("@ agent | reloadssl: nothing happens, exit code 0\n")
		fi;
		if :: legacy -> keys_later = false; trust_later = false :: else fi
	};
	settle()
}
/* the agent's own handshake: it makes Cassandra build the context if there is none, and shows the leaf */
inline handshake() {
	d_step {
		if
		:: context[SERVER] == NONE ->
			printf("@ agent | handshake: Cassandra reads keystore %d and truststore %d\n", keys, trust);
			use(keys, trust);
			if :: loads(keys, trust) -> context[SERVER] = keys + 4 * trust :: else fi
		:: else -> printf("@ agent | handshake: what is cached answers\n")
		fi
	}
}
#define served (context[SERVER] % 4)
#define served_trust (context[SERVER] / 4)

active proctype agent() {
	c_code { now.without = getenv("WITHOUT") ? atoi(getenv("WITHOUT")) : 0; now.goal = getenv("GOAL") ? atoi(getenv("GOAL")) : 0; };
	if
	:: move = GROW :: move = SWAP :: move = BOTH :: move = SHRINK :: move = RENEW :: move = SURPRISE :: move = WORN
	:: !GATE(NOT_MIXED) -> move = MIXED
	:: !GATE(PREFLIGHT_NEW) -> move = UNFIT
	fi;
	if :: legacy = true :: legacy = false fi;
	if :: new_keys && move != BOTH -> alone = true :: true fi;
	/* before: both contexts are cached, or a poll after an earlier install has emptied the cache for accepting */
	d_step { context[SERVER] = OLD; context[CLIENT] = OLD };
	if :: move != WORN -> context[SERVER] = NONE :: true fi;
	printf("@ begin | the agent begins: kind %d, legacy reload %d, alone %d\n", move, legacy, alone);
	ready = true;

	if
	:: move == WORN && GATE(PREFLIGHT_OLD) -> printf("@ agent | refuses: there would be no way back\n"); goto rest
	:: else
	fi;
	if :: GATE(BASELINE) -> handshake() :: else fi;
	may_die();
	if :: GATE(JOURNAL) -> journal = true; printf("@ agent | journal written\n") :: else fi;
	may_die();
	if
	:: new_trust && (GATE(TRUST_FIRST) || !new_keys) -> write_trust(NEW); may_die(); if :: new_keys -> write_keys(NEW) :: else fi
	:: new_trust && new_keys && !GATE(TRUST_FIRST) -> write_keys(NEW); may_die(); write_trust(NEW)
	:: !new_trust -> write_keys(NEW)
	fi;
	may_die();
	if :: !GATE(JOURNAL) -> journal = true :: else fi;
forth:
	reload();
	may_die();
prove:
	if
	:: GATE(PROVE) ->
		handshake();
		if
		:: new_keys && (context[SERVER] == NONE || served != NEW) -> printf("@ agent | proof: not the new leaf\n"); goto back
		:: else
		fi;
		may_die()
	:: else
	fi;
	/* a neighbour proves, or refuses, or does not answer: then back */
	if
	:: GATE(NEIGHBOUR) && !alone -> handshake();
		if
		:: d_step { context[SERVER] == new_context -> seen = true; printf("@ neighbour | proves the move\n") }
		:: printf("@ neighbour | no proof\n"); goto back
		fi;
		may_die()
	:: else
	fi;
	d_step { record = NEW; printf("@ agent | commits the move\n") };
	may_die();
	d_step {
		journal = false; proven = true; printf("@ agent | reports PROVEN\n");
		/* what model B builds on */
		if
		:: keys + 4 * trust != new_context || (context[SERVER] != NONE && context[SERVER] != new_context) ->
			printf("@ OUTAGE | PROVEN is reported, and context %d is in force\n", context[SERVER]); assert(false)
		:: else
		fi
	};
	goto rest;

back:	skip;
	d_step { going_back = true; journal = true; seen = seen && !GATE(COMMITTED); printf("@ agent | turns back\n") };
	may_die();
	if
	:: keys == NEW && (GATE(KEYS_BACK) || trust != NEW || !new_trust) -> write_keys(OLD); may_die(); if :: trust == NEW -> write_trust(OLD) :: else fi
	:: keys == NEW && trust == NEW && new_trust && !GATE(KEYS_BACK) -> write_trust(OLD); may_die(); write_keys(OLD)
	:: keys != NEW -> if :: trust != OLD -> write_trust(OLD) :: else fi; if :: keys != OLD -> write_keys(OLD) :: else fi
	fi;
	may_die();
	reload();
	may_die();
	handshake();
	if
	:: new_keys && (context[SERVER] == NONE || served != OLD) -> printf("@ agent | FAILED: the old leaf is not served; tries again\n"); goto back
	:: else
	fi;
	d_step { record = OLD; going_back = false; journal = false; printf("@ agent | reports ROLLED_BACK\n"); assert(goal != ROLLED_BACK) };
	goto rest;

recover:	skip;
	d_step { assert(goal != RECOVERED || !touched); printf("@ agent | settles what it finds: keystore %d, truststore %d\n", keys, trust) };
	if
	:: !journal -> goto rest
	:: journal && !GATE(BY_DISK) && !going_back -> d_step { journal = false; printf("@ agent | the journal says that nothing was done yet\n") }; goto rest
	:: journal && GATE(BY_DISK) && record == NEW && !going_back -> d_step { journal = false; proven = true }; goto rest
	:: journal && GATE(BY_DISK) && record == OLD && !going_back && keys + 4 * trust == new_context ->
		settle();
		if :: new_trust -> goto forth :: else -> goto prove fi
	:: journal && (going_back || (GATE(BY_DISK) && record == OLD && keys + 4 * trust != new_context)) -> goto back
	fi;

rest:	skip;
	/* nothing open: the files are the pair on record */
	d_step {
		if
		:: !journal && keys + 4 * trust != (record == NEW -> new_context : OLD) ->
			printf("@ OUTAGE | the agent rests, and the files are not the pair it has on record\n"); assert(false)
		:: else
		fi
	};
	/* later proofs, after the polls: one that fails turns back, without asking the ring, which may have gone on */
end:	do
	:: d_step { record == NEW && proven && (move == RENEW || !GATE(RETREAT)) ->
		proven = false; assert(goal != RETREATED); printf("@ agent | a later proof fails: it gives the move up\n") }; goto back
	od
}
