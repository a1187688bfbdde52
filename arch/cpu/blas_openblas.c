// SPDX-License-Identifier: MIT
/*
 * What OpenBLAS has beside the CBLAS interface.
 */
#include "blas.h"

/* Declared here: the <cblas.h> found may be that of another library. */
void openblas_set_num_threads(int num_threads);
char *openblas_get_config(void);

void blas_init(void)
{
	openblas_set_num_threads(1);
}

const char *blas_name(void)
{
	return openblas_get_config();
}
