// SPDX-License-Identifier: MIT
/*
 * SIGTERM and SIGINT. The first one is only noted: the loop ends after the
 * micro-batch that is running and keeps the last complete step. The second one
 * ends the process where it stands, which every file survives (checkpoints are
 * renamed into place, logs are cut back on resume).
 */
#include <signal.h>
#include <unistd.h>

#include "dist.h"
#include "train.h"

static volatile sig_atomic_t caught;

static void on_signal(int sig)
{
	if (caught)
		_exit(128 + sig);
	caught = sig;
}

void stop_install(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	sigemptyset(&sa.sa_mask);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
}

int stop_agreed(void)
{
	static int agreed;

	if (!agreed)
		agreed = dist_agree(caught);
	return agreed;
}
