/*
 * One doorbell for several words (shm/wake.h): publishers with a lane each, a daemon that sleeps on
 * all of them at once. wake.pml is the handshake of one word in both directions; this model adds that the
 * daemon does not know which publisher rang, and that a ring may come late: a publisher preempted between its
 * store and its look at the word rings long after its record was answered, in a later sleep.
 *
 * Stores go through buffers (TSO): the daemon's words through a queue, a publisher's tail, the only
 * thing it stores, through the difference between what it has sent and what is seen of it. When no process can
 * move, a daemon that sleeps on a record is an invalid end state to spin.
 *
 * -DEXPEDITED         no fence in the publishers: the daemon's membarrier stands for theirs
 * -DMISSED            EXPEDITED, and the barrier may miss a publisher, as Linux's does: the daemon looks a
 *                     second time, when what was on its way then has arrived
 *
 * Each of these is a mistake, and must be found:
 * -DNO_NEW_SLEEP      a daemon that was rung without work sleeps on under the same value
 * -DNO_LOOK           a new sleep begins without looking for work once more
 * -DONE_WORD          a daemon that was rung looks at the words only until one has work
 * -DREAD_LATE         the doorbell is read after the words are looked at
 * -DNO_SECOND_LOOK    MISSED without the second look
 */
#ifdef MISSED
#define EXPEDITED
#endif
#ifndef N
#define N 2 /* records of the first */
#endif
#ifndef M
#define M 1 /* and of the second */
#endif
#define P 2 /* publishers */
#define RECORDS(p) (p == 0 -> N : M)

byte sent[P];   /* sq_tail as its publisher has stored it */
byte seen[P];   /* and as other processes see it */
byte asleep[P]; /* the words, as other processes see them */
byte doorbell;  /* the eventfd: 1 is readable */
chan stores = [2 * P] of { byte, byte };

inline fence_daemon() { empty(stores) }

active proctype buffers()
{
	byte v, x;

end:	do
	:: atomic { stores?v, x -> asleep[v] = x }
	:: atomic { seen[0] < sent[0] -> seen[0]++ }
	:: atomic { seen[1] < sent[1] -> seen[1]++ }
	od
}

active [P] proctype publisher()
{
	byte me = _pid - 1, rung, w;

	do
	:: sent[me] == RECORDS(me) -> break
	:: else ->
		sent[me]++;
#ifndef EXPEDITED
		seen[me] == sent[me];
#endif
		w = asleep[me]; /* and from here it may be preempted for any time */
		atomic {
			if
			:: (w & 1) == 1 && w != rung ->
				rung = w;
				doorbell = 1
			:: else
			fi;
			w = 0
		}
	od
}

#define DOZES(p) ((count[p] & 1) == 1)

inline doze(p)
{
	count[p] = count[p] | 1;
	stores!p, count[p];
	dozed[p] = true
}

inline rise(p)
{
	count[p] = (count[p] | 1) + 1;
	stores!p, count[p]
}

/* lane_look */
inline look(p)
{
	if
	:: seen[p] > got[p] -> rise(p)
	:: else
	fi
}

/* lane_hear */
inline hear(p)
{
	atomic {
		if
		:: !DOZES(p)
		:: DOZES(p) && seen[p] > got[p] -> rise(p)
		:: DOZES(p) && seen[p] == got[p] ->
#ifndef NO_NEW_SLEEP
			rise(p);
			doze(p)
#endif
		fi
	}
}

inline read_doorbell()
{
#ifdef ONE_WORD
	doorbell = 0;
	if
	:: DOZES(0) && seen[0] > got[0] -> rise(0)
	:: else -> hear(1)
	fi
#else
#ifndef READ_LATE
	doorbell = 0;
#endif
	hear(0);
	hear(1)
#ifdef READ_LATE
	;
	doorbell = 0
#endif
#endif
}

/* A lane that is polled: a record, or nothing, and then it may fall asleep. */
inline pump(p)
{
	atomic {
		if
		:: DOZES(p)
		:: !DOZES(p) && seen[p] > got[p] -> got[p]++
		:: !DOZES(p) && seen[p] == got[p] /* spins on */
		:: !DOZES(p) && seen[p] == got[p] -> doze(p)
		fi
	}
}

/* The barrier of one publisher's stores, which its processor may miss. */
inline drain(p)
{
	if
	:: seen[p] = sent[p]
#ifdef MISSED
	:: true
#endif
	fi
}

inline settle(p)
{
	atomic {
		if
		:: dozed[p] ->
			dozed[p] = false;
#ifndef NO_LOOK
			if
			:: DOZES(p) -> look(p)
			:: else
			fi;
#endif
#ifdef MISSED
			doubted[p] = DOZES(p);
			due[p] = (doubted[p] -> sent[p] : 0)
#endif
		:: else
		fi
	}
}

inline look_again(p)
{
	doubted[p] = false;
	due[p] = 0;
	if
	:: DOZES(p) -> look(p)
	:: else
	fi
}

active proctype daemon()
{
	byte got[P], count[P], due[P];
	bool dozed[P], doubted[P];

	do
	:: got[0] == N && got[1] == M -> break
	:: else ->
		/* The turn. */
		pump(0);
		pump(1);
		if
		:: dozed[0] || dozed[1] ->
			fence_daemon();
#ifdef EXPEDITED
			atomic {
				drain(0);
				drain(1)
			}
#endif
			settle(0);
			settle(1)
		:: else
		fi;
		/* The poll: it waits if nothing is polled. */
		if
		:: doorbell == 1 -> read_doorbell()
		:: !DOZES(0) || !DOZES(1) || dozed[0] || dozed[1]
#if defined(MISSED) && !defined(NO_SECOND_LOOK)
		:: atomic { doubted[0] && seen[0] >= due[0] -> look_again(0) }
		:: atomic { doubted[1] && seen[1] >= due[1] -> look_again(1) }
#endif
		fi
	od
}
