/*
 * The commit point of shm/ring.h over the daemon's death at any store, twice, the second time
 * perhaps while it recovers: every record is completed exactly once (I4, I5, G).
 *
 * The client publishes N records and counts the completions of each; a record with two fails an
 * assertion, one with none leaves the client waiting in an invalid end state. The daemon admits,
 * finishes in any order, writes entries, commits them by cq_tail and releases by sq_head, each a
 * store of its own, with as many entries written ahead of cq_tail as it likes. A daemon that dies
 * loses all but the shared words.
 *
 * Stores are seen in program order here: a store buffer that keeps their order and is emptied when
 * its process ends adds nothing but delay. RELEASE_FIRST shows the effect of a weak order of the two stores.
 *
 * -DCARELESS        the client keeps no completion slots; the daemon's own check is enough
 *
 * Each of these is a mistake, and must be found:
 * -DRELEASE_FIRST   sq_head may be stored before cq_tail (pair G)
 * -DCOMMIT_FIRST    cq_tail is stored before its entry (pair D)
 * -DWHOLE_RING      recovery believes all M entries below cq_tail, uncommitted ones among them
 * -DNO_FLOOR        admission counts unreleased records only, up to M, and recovery believes all M
 *                   entries: those of finished records behind a slow one are overwritten
 * -DNO_SLOT         neither side looks at cq_head: unread entries are overwritten
 * -DNO_RECOVERY     a new daemon takes every unreleased record for unfinished
 */
#ifndef N
#define N 8 /* records */
#endif
#define M 4 /* entries of the CQ */
#define K 5 /* records that fit the SQ */
#ifndef KILLS
#define KILLS 2
#endif

byte sq_tail, sq_head, cq_tail, cq_head;
byte cq[M]; /* an entry is its record's position + 1 */
byte times[N];

#if defined(CARELESS) || defined(NO_SLOT)
#define ROOM (sq_tail < N && sq_tail - sq_head < K)
#else
#define ROOM (sq_tail < N && sq_tail - sq_head < K && sq_tail - cq_head < M)
#endif

active proctype client()
{
	byte p;

	do
	:: cq_head == N -> break
	/* As much as it may: a daemon that sees less is one that looked earlier. */
	:: atomic {
		ROOM ->
			do
			:: ROOM -> sq_tail++
			:: else -> break
			od
	   }
	:: cq_head < cq_tail ->
		d_step {
			p = cq[cq_head % M] - 1;
			times[p]++;
			assert(times[p] == 1);
			cq_head++;
			p = 0
		}
	od
}

/* The daemon's memory. It is forgotten at death. */
byte head, cursor, tail, unfinished, floor_found, tail_found;
byte floor_of[N];
bool is_done[N];
byte c;

inline forget()
{
	d_step {
		head = sq_head;
		cursor = sq_head;
		tail = cq_tail;
		unfinished = 0;
		c = 0;
		do
		:: c < N ->
			is_done[c] = false;
			floor_of[c] = 0;
			c++
		:: else -> break
		od;
		c = 0
	}
}

#if defined(WHOLE_RING) || defined(NO_FLOOR)
#define BELIEVED M
#else
#define BELIEVED (M / 2)
#endif

/* I5: reads words and entries, stores nothing. */
inline recover()
{
	d_step {
		floor_found = tail;
		tail_found = sq_tail;
		if
		:: tail < BELIEVED -> c = 0
		:: else -> c = tail - BELIEVED
		fi;
		do
		:: c < tail ->
			if
			:: cq[c % M] > 0 && cq[c % M] - 1 >= head && cq[c % M] - 1 < sq_tail ->
				is_done[cq[c % M] - 1] = true;
				if
				:: c < floor_found -> floor_found = c
				:: else
				fi
			:: else
			fi;
			c++
		:: else -> break
		od;
		/* Forgotten again where nothing looks. */
		c = 0
	}
}

#define FLOOR (head == cursor -> tail : floor_of[head])

#ifdef NO_SLOT
#define SLOT true
#else
#define SLOT (tail + unfinished < cq_head + M)
#endif
#ifdef NO_FLOOR
#define KEPT (cursor - head < M)
#else
#define KEPT (tail + unfinished < FLOOR + M / 2)
#endif

inline note_floor()
{
	if
	:: cursor < tail_found -> floor_of[cursor] = floor_found
	:: else -> floor_of[cursor] = tail
	fi
}

/* Between any two stores the daemon may die: every option below does at most one. */
active proctype daemon()
{
	byte p, left, kills;

start:	forget();
#ifndef NO_RECOVERY
	recover();
#endif
end:	do
	:: atomic {
		kills < KILLS ->
			kills++;
			goto start
	   }
	/* A record that an earlier daemon finished. */
	:: atomic {
		cursor < sq_tail && is_done[cursor] ->
			note_floor();
			cursor++
	   }
	:: atomic {
		cursor < sq_tail && !is_done[cursor] && SLOT && KEPT ->
			note_floor();
			cursor++;
			unfinished++
	   }
	/* Finishes any of those admitted. */
	:: atomic {
		unfinished > 0 ->
			p = head;
			left = unfinished;
			do
			:: is_done[p] -> p++
			:: !is_done[p] && left > 1 ->
				p++;
				left--
			:: !is_done[p] -> break
			od;
			left = 0;
			is_done[p] = true;
			unfinished--;
#ifdef COMMIT_FIRST
			cq_tail = tail + 1
	   };
	   atomic {
#endif
			cq[tail % M] = p + 1;
			p = 0;
			tail++
	   }
	:: atomic { cq_tail < tail -> cq_tail = tail }
	:: atomic {
#ifdef RELEASE_FIRST
		head < cursor && is_done[head] ->
#else
		cq_tail == tail && head < cursor && is_done[head] ->
#endif
			do
			:: head < cursor && is_done[head] ->
				floor_of[head] = 0;
				head++
			:: else -> break
			od;
			sq_head = head
	   }
	od
}
