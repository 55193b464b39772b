#include "signals.h"

#include "handover.h"
#include "loop.h"

#include <signal.h>

enum action { STOP, UPGRADE, SAY };

static const struct {
	int number;
	const char *name;
	enum action action;
	const char *words; /* of SAY */
} watched[] = {
	{ SIGTERM, "SIGTERM", STOP, NULL },
	{ SIGINT, "SIGINT", STOP, NULL },
	{ SIGQUIT, "SIGQUIT", STOP, NULL },
	{ SIGUSR2, "SIGUSR2", UPGRADE, NULL },
	{ SIGHUP, "SIGHUP", SAY, "the configuration cannot be reloaded yet: upgrade or restart" },
	{ SIGXCPU, "SIGXCPU", SAY, "RLIMIT_CPU is used up, the kernel ends the daemon at its hard limit" },
	{ SIGUSR1, "SIGUSR1", SAY, "it has no meaning here" },
	{ SIGALRM, "SIGALRM", SAY, "it has no meaning here" },
	{ SIGVTALRM, "SIGVTALRM", SAY, "it has no meaning here" },
	{ SIGPROF, "SIGPROF", SAY, "it has no meaning here" },
	{ SIGIO, "SIGIO", SAY, "it has no meaning here" },
	{ SIGPWR, "SIGPWR", SAY, "it has no meaning here" },
};

#define WATCHED (sizeof(watched) / sizeof(watched[0]))
_Static_assert(WATCHED == SIGNALS_WATCHED, "a handle for each signal");

/* What the kernel sends in place of an error (EPIPE, EFBIG) or of a line of the log (SIGTTOU). */
static const int ignored[] = { SIGPIPE, SIGXFSZ, SIGTTOU, SIGTTIN, SIGSTKFLT };

void
signals_ignore(void)
{
	sigset_t none;

	for (unsigned i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	for (unsigned i = 0; i < WATCHED; i++)
		if (watched[i].action != STOP)
			signal(watched[i].number, SIG_IGN);
	for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
		signal(number, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static const char *
upgrade(struct signals *signals)
{
	const char *why = "the daemon is still starting";

	return signals->handover != NULL && handover_begin(signals->handover, &why) >= 0 ? NULL : why;
}

static void
on_signal(uv_signal_t *handle, int number)
{
	struct signals *signals = handle->data;
	unsigned i = (unsigned)(handle - signals->handles);
	const char *why;

	switch (watched[i].action) {
	case STOP:
		loop_stop(signals->loop, watched[i].name);
		break;
	case UPGRADE:
		if ((why = upgrade(signals)) != NULL)
			log_event(LOG_LEVEL_ERROR, "upgrade_failed", "cause=\"%s\"", why);
		break;
	case SAY:
		log_limited(&signals->limit, LOG_LEVEL_WARN, "signal_ignored", "signal=%s cause=\"%s\"",
		    watched[i].name, watched[i].words);
		break;
	}
}

void
signals_init(struct signals *signals, struct loop *loop)
{
	*signals = (struct signals){ .loop = loop };
	for (unsigned i = 0; i < WATCHED; i++) {
		uv_signal_init(&loop->uv, &signals->handles[i]);
		signals->handles[i].data = signals;
		uv_signal_start(&signals->handles[i], on_signal, watched[i].number);
		uv_unref((uv_handle_t *)&signals->handles[i]);
	}
}
