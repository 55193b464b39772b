/*
 * The lanes whose records ride a link: their turns, their share of its window, and what becomes of them when the broker
 * does not answer. Links call these through struct link_events.
 *
 * One thread: the shard's.
 */
#ifndef TG_DAEMON_RIDERS_H
#define TG_DAEMON_RIDERS_H

struct lane;
struct link;

/* Lets lanes that wait for the link have their turn, as long as it is writable. */
void riders_serve(struct link *link);

/* Those that wait for it look for another. */
void riders_release(struct link *link);

/* The lanes bound to it are bound anew, by their next records. */
void riders_unbind(struct link *link);

/* A suspect keeps what it holds; its lanes need not wait for it, and send the same elsewhere. */
void riders_let_go(struct link *link);

/*
 * Nothing was answered for ack_timeout_ms, but probes are. If all that is unanswered is one lane's, those messages
 * leave the window, and the lane sends them once more, to another broker where there is one. Returns whether they were, and
 * not for a second lane in a row: then it is the link that is mute.
 */
int riders_pass_over(struct link *link);

/* Has late messages sent again that were sent stall_timeout_ms ago. */
void riders_retry_late(struct link *link);

/* Whether the lane may have one more message in this link's window. */
int rider_has_share(const struct link *link, const struct lane *lane);

#endif
