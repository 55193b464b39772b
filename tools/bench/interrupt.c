/* Signals that end a measurement; processes and files that it started are ended and removed first. */
#include "build_config.h"

#include "tools/bench/bench.h"

volatile sig_atomic_t bench_stop;

static void
on_signal(int signal_number)
{
	(void)signal_number;
	bench_stop = 1;
}

void
bench_catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}
