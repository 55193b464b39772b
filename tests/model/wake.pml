/*
 * The handshake of shm/wake.h in both directions: a client that publishes and sleeps on its
 * completions, a daemon that completes and sleeps on its lane. Pairs C and F of shm/ring.h.
 * One word each; doorbell.pml has several.
 *
 * Stores go through a store buffer for each side (TSO, as on x86): a FIFO that drains whenever it
 * likes, so a load can be done before an earlier store is seen. A fence waits until the own buffer
 * is empty; membarrier empties the other's as well. A lost wake-up leaves a side asleep for ever while no
 * process can move, which spin reports as an invalid end state.
 *
 * -DEXPEDITED         pair C by the daemon's membarrier alone
 * -DRESTART           the daemon dies once, anywhere, and another takes the lane over
 *
 * Each of these is a mistake, and must be found:
 * -DNO_C_CLIENT -DNO_C_DAEMON -DNO_F_CLIENT -DNO_F_DAEMON     one fence is missing (with
 *                     EXPEDITED, NO_C_DAEMON is the missing membarrier)
 * -DHALF_BARRIER      EXPEDITED with a fence of the daemon's own in place of membarrier
 * -DNO_RECHECK        sleeps without looking for work once more
 * -DSAME_WORD         the word is a flag, not a count, and one sleep is rung once
 * -DDRAIN_LATE        the eventfd is read after wake_doze
 * -DRING_FIRST        the daemon rings before it stores sq_head (shows with R=1)
 * -DWORD_ANEW         RESTART with a sleeper's count that starts over
 * -DNO_FIRST_RING     RESTART without the ring that the dead one may have owed
 */
#ifndef N
#define N 3 /* records */
#endif
#ifndef R
#define R 2 /* records that fit the ring */
#endif
#define D 3 /* stores that fit a buffer */

#define CLIENT 0
#define DAEMON 1

#define SQ_TAIL 0
#define WAITING 1
#define CQ_TAIL 2
#define SQ_HEAD 3
#define ASLEEP 4

byte mem[5];
byte depth[2];
byte var_of[6];
byte val_of[6];
byte doorbell, bell; /* eventfds: 1 is readable */
bool dead;

inline store(p, v, x)
{
	atomic {
		depth[p] < D;
		var_of[p * D + depth[p]] = v;
		val_of[p * D + depth[p]] = x;
		depth[p]++
	}
}

inline drain_one(p)
{
	d_step {
		mem[var_of[p * D]] = val_of[p * D];
		var_of[p * D] = var_of[p * D + 1];
		val_of[p * D] = val_of[p * D + 1];
		var_of[p * D + 1] = var_of[p * D + 2];
		val_of[p * D + 1] = val_of[p * D + 2];
		var_of[p * D + 2] = 0;
		val_of[p * D + 2] = 0;
		depth[p]--
	}
}

inline drain_all(p)
{
	atomic {
		do
		:: depth[p] > 0 -> drain_one(p)
		:: depth[p] == 0 -> break
		od
	}
}

inline fence(p) { depth[p] == 0 }

inline barrier()
{
	fence(DAEMON);
	drain_all(CLIENT)
}

active [2] proctype buffer()
{
end:	do
	:: atomic { depth[_pid] > 0 -> drain_one(_pid) }
	od
}

/* wake_must_ring, and the ring. */
inline ring(v, fd)
{
	w = mem[v];
	if
	:: (w & 1) == 1 && w != rung ->
		rung = w;
		fd = 1
	:: else
	fi
}

#ifdef SAME_WORD
#define DOZE(c) c = 1
#define RISE(c) c = 0
#else
#define DOZE(c) c = c | 1
#define RISE(c) c = (c | 1) + 1
#endif

inline sleep_on(fd)
{
#ifdef DRAIN_LATE
	fd = 0;
#endif
	fd > 0;
#ifndef DRAIN_LATE
	fd = 0
#endif
}

#define CLIENT_HAS_WORK (mem[CQ_TAIL] > done || (sent < N && sent - mem[SQ_HEAD] < R))

active proctype client()
{
	byte sent, done, count, rung, w;
	bool moved;

	do
	:: done == N -> break
	:: else ->
		moved = false;
		if
		:: sent < N && sent - mem[SQ_HEAD] < R ->
			sent++;
			store(CLIENT, SQ_TAIL, sent);
#if !defined(EXPEDITED) && !defined(NO_C_CLIENT)
			fence(CLIENT);
#endif
			ring(ASLEEP, doorbell);
			moved = true
		:: else
		fi;
		atomic {
			if
			:: mem[CQ_TAIL] > done ->
				done = mem[CQ_TAIL];
				moved = true
			:: else
			fi
		}
		if
		:: moved
		:: !moved && done < N /* spins on */
		:: !moved ->
			DOZE(count);
			store(CLIENT, WAITING, count);
#ifndef NO_F_CLIENT
			fence(CLIENT);
#endif
#ifndef NO_RECHECK
			if
			:: CLIENT_HAS_WORK
			:: !CLIENT_HAS_WORK -> sleep_on(bell)
			fi;
#else
			sleep_on(bell);
#endif
			RISE(count);
			store(CLIENT, WAITING, count)
		fi
	od
}

active proctype daemon()
{
	byte got, count, rung, w;

work:
	{
		do
		:: got == N -> goto finished
		:: else ->
			if
			:: mem[SQ_TAIL] > got ->
				got++;
				store(DAEMON, CQ_TAIL, got);
#ifdef RING_FIRST
				fence(DAEMON);
				ring(WAITING, bell);
				store(DAEMON, SQ_HEAD, got)
#else
				store(DAEMON, SQ_HEAD, got);
#ifndef NO_F_DAEMON
				fence(DAEMON);
#endif
				ring(WAITING, bell)
#endif
			:: mem[SQ_TAIL] == got ->
				DOZE(count);
				store(DAEMON, ASLEEP, count);
#ifndef NO_C_DAEMON
#if defined(EXPEDITED) && !defined(HALF_BARRIER)
				barrier();
#else
				fence(DAEMON);
#endif
#endif
#ifndef NO_RECHECK
				if
				:: mem[SQ_TAIL] > got
				:: mem[SQ_TAIL] == got -> sleep_on(doorbell)
				fi;
#else
				sleep_on(doorbell);
#endif
				RISE(count);
				store(DAEMON, ASLEEP, count)
			fi
		od
	} unless { dead };
	/* Another daemon. It sees all stores of the dead one, since a process ended in between. */
	atomic {
		dead = false;
		drain_all(DAEMON);
		got = mem[CQ_TAIL];
		rung = 0;
#ifdef WORD_ANEW
		count = 0
#else
		count = (mem[ASLEEP] | 1) + 1
#endif
	}
	store(DAEMON, SQ_HEAD, got);
	store(DAEMON, ASLEEP, count);
	fence(DAEMON);
#ifndef NO_FIRST_RING
	bell = 1;
#endif
	goto work;
finished:
	skip
}

#ifdef RESTART
active proctype killer()
{
	if
	:: dead = true
	:: true
	fi
}
#endif
