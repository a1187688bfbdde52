// SPDX-License-Identifier: MIT
/*
 * What OpenBLAS has beside the CBLAS interface.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blas.h"
#include "util.h"

enum {
	BUFFER = 32 << 22,	/* bytes that it packs into, for each call at a time (x86-64) */
	SERVED = 64,		/* threads, where it does not say for how many it was built */
	ENV_MAX = 4096,
};

#define OWN_THREADS "OPENBLAS_NUM_THREADS="

/* Declared here: the <cblas.h> found may be that of another library. */
void openblas_set_num_threads(int num_threads);
char *openblas_get_config(void);

void blas_init(void)
{
	openblas_set_num_threads(1);
}

/*
 * While it is loaded, before any constructor and main(), OpenBLAS starts a thread for each
 * processor. Nobody here uses them; each takes 136 MiB of address space, and where there is
 * none it waits for ever, at the end of the process too. It listens to nothing but its
 * environment, so the program starts itself once more with that. Nothing of libc is ready
 * here but system calls.
 */
static void one_thread(int argc, char **argv, char **env)
{
	static char *longer[ENV_MAX];
	int n = 0;

	(void)argc;
	for (; env[n] && n < ENV_MAX - 2; n++) {
		if (!strncmp(env[n], OWN_THREADS, strlen(OWN_THREADS)))
			return;
		longer[n] = env[n];
	}
	longer[n] = (char *)OWN_THREADS "1";
	if (!env[n])
		execve("/proc/self/exe", argv, longer);
}

static void (*const start)(int, char **, char **)
	__attribute__((section(".preinit_array"), used)) = one_thread;

int blas_threads(void)
{
	const char *built = strstr(openblas_get_config(), "MAX_THREADS=");
	int n = built ? atoi(built + strlen("MAX_THREADS=")) : SERVED;

	/* it has buffers for twice as many, of which the call that warms it up takes one */
	return 2 * n;
}

size_t blas_thread_bytes(void)
{
	return BUFFER;
}

const char *blas_name(void)
{
	return openblas_get_config();
}
