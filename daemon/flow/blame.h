/*
 * Blame: finding the lane, and then the message, over which a broker closes its connections.
 *
 * Brokers refuse a message they dislike in three ways: they answer it (the driver's business), they close
 * with words that do not name it (FATAL_MESSAGE), or they close without a word (FATAL_DROPPED; MQTT 3.1.1
 * gives them no other way). Sent again with all the others, such a message would end one link after the
 * other until its deadline, and every other lane would pay for it. A broker that crashes looks the same at
 * first. So:
 *
 *   first close    of a link that was READY: every message that was sent and not answered gets a mark. The
 *                  link connects again at once; breaker and back-off do not count the close
 *                  A close within BLAME_AFTERWORD_MS of a rejection, or one of which the driver says so
 *                  (FATAL_ANSWERED), is explained by that: the broker has answered the message. Its lane is guilty at once
 *   second close   the lanes of messages with two marks are set apart, as suspects. A lane that is known
 *                  (its process or its user was found guilty before) is set apart at the first close
 *   apart          each broker has one more link for lanes that are set apart. One lane at a time may use it
 *                  (its holder). A suspect whose marked messages are all answered is cleared and returns to
 *                  the ordinary links
 *   verdict        the apart link closes while a lane holds it, and another link of the same broker, which
 *                  was READY then, still is when the apart link is READY again: the broker lives, so the
 *                  holder is guilty. The other suspects are cleared
 *   single         its messages go one at a time, with a pause that doubles at each close and is halved at
 *                  each answer. The message that was alone at three closes is rejected in the broker's words
 *                  (REJECT_CLOSED where it had none). After a number of answers in a row, which doubles with
 *                  each verdict, the lane returns to the ordinary links
 *
 * Verdicts are remembered by process and by user (struct blame_book), so that a new lane or a new process
 * does not start clean: after one verdict its lanes are set apart at the first close, after several a new
 * lane begins apart. The counts of verdicts are halved every BLAME_FADE_MS.
 *
 * With on_failure = "report" a message is never sent a second time, so marks cannot meet: there a lane that
 * had sent on two links that closed within BLAME_NEAR_MS goes one at a time for BLAME_TRIAL answers.
 *
 * Closes that no verdict explains are the broker's: after BROKER_UNEXPLAINED of them, of links that were READY
 * for less than BLAME_WELL_MS or had no answer, breaker and back-off count as for any failure.
 *
 * Owner: pool (the book), broker (the apart link), lane (its state). One thread: the shard's.
 */
#ifndef TG_DAEMON_BLAME_H
#define TG_DAEMON_BLAME_H

#include "daemon/lane/lane_blame.h"

#include <stdint.h>
#include <sys/types.h>

struct broker;
struct lane;
struct link;
struct pool;

#define BLAME_FADE_MS 600000u /* what is remembered of a process or a user is halved so often */
#define BLAME_WELL_MS 50u /* a link that was READY for so long, and had answers, shows a broker that is well */
#define BLAME_AT_ONCE 64u /* lanes that one close sets apart, at most */
#define BLAME_REJECT 3u   /* closes over a message that was alone */
#define BLAME_PAUSE_MS 100u /* after the first verdict */
#define BLAME_PAUSE_MAX_MS 10000u
#define BLAME_AFTERWORD_MS 100u
#define BLAME_NEAR_MS 10000u
#define BLAME_TRIAL 4u
#define BLAME_ANSWERS 16u /* in a row, after the first verdict */
#define BLAME_ANSWERS_MAX 4096u
#define BLAME_ATTEMPTS 3u /* of an apart link to connect, in a row, before its lanes are let go */

/* Verdicts against processes and users of a pool. Zeroed: none. Bounded: the least of them makes way. */
#define BLAME_BOOK 64u
struct blame_entry {
	uid_t uid;
	pid_t pid;         /* 0: the user */
	uint32_t verdicts; /* 0: free */
	uint64_t last_ns;
};
struct blame_book {
	struct blame_entry processes[BLAME_BOOK];
	struct blame_entry users[BLAME_BOOK];
};

/* The broker rejects a message of the lane on this link. */
void blame_refused(struct link *link, const struct lane *lane);

/* A lane begins: it may have to begin apart. */
void blame_begin(struct lane *lane);

/* A link has ended with `kind` while messages were sent and unanswered; before they are taken back. Returns
 * whether it ended over a message, as far as can be known now. */
int blame_closed(struct link *link);

/* An apart link is READY: the verdict over the lane that held it at its last close, if one is due. */
void blame_ready(struct link *link);

/* For a lane that is set apart: the apart link it is to ride now, or NULL: none can be had (the lane may
 * have been cleared by that). */
struct link *blame_link(struct lane *lane);

/* Whether the lane may send on its apart link now; takes the link for it. */
int blame_may_send(struct link *link, struct lane *lane);

/* Nothing in the apart link's window is unanswered any more, after an answer (`answered`), a turn of its holder, or because
 * the rest is late: the turn may be over. */
void blame_turn(struct link *link, int answered);

/* Lets the lane that may have it use the apart link. */
void blame_serve(struct link *link);

/* "no", "suspect", "single". */
const char *blame_word(enum blame_state state);

#endif
