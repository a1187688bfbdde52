// SPDX-License-Identifier: MIT
/*
 * What BLIS has beside the CBLAS interface.
 */
#include <stdio.h>

#include "blas.h"

/* Declared here: the <cblas.h> found may be that of another library. */
void bli_thread_set_num_threads(int64_t num_threads);
char *bli_info_get_version_str(void);

void blas_init(void)
{
	bli_thread_set_num_threads(1);
}

int blas_threads(void)
{
	return 0;
}

/* its pool of packed blocks and panels: a few MiB on every processor that it knows */
size_t blas_thread_bytes(void)
{
	return 16 << 20;
}

const char *blas_name(void)
{
	static char name[64];

	if (!name[0])
		snprintf(name, sizeof(name), "BLIS %s", bli_info_get_version_str());
	return name;
}
