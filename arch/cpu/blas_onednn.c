// SPDX-License-Identifier: MIT
/*
 * Matrix products through oneDNN's C interface: float, and bf16 summed in float. It has
 * none of double.
 */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>

#include "blas.h"
#include "util.h"

/* Exported beside dnnl_sgemm(), with its conventions, but declared in no header. */
dnnl_status_t dnnl_gemm_bf16bf16f32(char ta, char tb, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k,
				    float alpha, const act_t *a, dnnl_dim_t lda, const act_t *b,
				    dnnl_dim_t ldb, float beta, float *c, dnnl_dim_t ldc);

void blas_init(void)
{
}

int blas_threads(void)
{
	return 0;
}

/*
 * What a call packs, a few MiB on every processor that it knows; and the code that it makes
 * at its first call, for lack of which it would crash.
 */
size_t blas_thread_bytes(void)
{
	return 24 << 20;
}

const char *blas_name(void)
{
	const dnnl_version_t *v = dnnl_version();
	static char name[64];

	if (!name[0])
		snprintf(name, sizeof(name), "oneDNN %d.%d.%d, isa 0x%x", v->major, v->minor,
			 v->patch, (unsigned int)dnnl_get_effective_cpu_isa());
	return name;
}

/*
 * The library asks OpenMP for threads unless it is called inside a parallel region of
 * several: the blocks are the threads' work, so it is told of one. Returns: what to
 * restore.
 */
static int one_thread(void)
{
	int threads = omp_get_max_threads();

	omp_set_num_threads(1);
	return threads;
}

static void end(int threads, dnnl_status_t status)
{
	omp_set_num_threads(threads);
	if (status != dnnl_success)
		die("oneDNN: a matrix product failed with status %d: free memory, or set "
		    "CONFIG_BLAS_OPENBLAS=y", status);
}

void blas_gemm_acc(bool ta, bool tb, int m, int n, int k, double alpha, const acc_t *a, long lda,
		   const acc_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	int threads = one_thread();

	end(threads, dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, (const void *)a,
				lda, (const void *)b, ldb, beta, (void *)c, ldc));
}

const char *onednn_way(void)
{
	dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();

	if ((isa & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx)
		return ", bf16 by AMX";
	if ((isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16)
		return ", bf16 by avx512_bf16";
	return NULL;
}

void onednn_gemm_bf16(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		      long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	int threads = one_thread();

	end(threads, dnnl_gemm_bf16bf16f32(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda,
					   b, ldb, beta, (void *)c, ldc));
}
