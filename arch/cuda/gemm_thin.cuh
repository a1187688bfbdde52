/* SPDX-License-Identifier: MIT */
/**
 * DOC: products of few rows
 *
 * What those of up to 16 and of up to 64 rows share. In the tensor cores' terms rows are
 * the 16 of the left operand, weights the 8 columns of the right one. The inner dimension
 * may come in any order that both agree on, so that a lane's eight elements of two products
 * are 16 bytes of one row.
 */
#ifndef TENON_CUDA_GEMM_THIN_CUH
#define TENON_CUDA_GEMM_THIN_CUH

#include "act.cuh"
#include "gemm.cuh"
#include "rows.cuh"

/* One element behind the product: bias, activation, and where they go. */
struct finish {
	enum gemm_epilogue ep;
	const real *bias;
	real *aux;
	long ldaux;

	__device__ __forceinline__ float operator()(float x, long i, int j) const
	{
		if (bias)
			x += get(bias + j);
		if (ep == GEMM_BIAS_GELU) {
			put(aux + i * ldaux + j, x);
			x = gelu(rounded(x));
		} else if (ep == GEMM_DGELU) {
			x *= gelu_grad(get(aux + i * ldaux + j));
		}
		return x;
	}
};

static inline struct finish finish_of(const struct gemm *g)
{
	bool bias = g->ep == GEMM_BIAS || g->ep == GEMM_BIAS_GELU;

	return { g->ep, bias ? real_of(g->bias) : NULL, real_of(g->aux), g->ldaux };
}

/** finish_put() - *c = what is behind alpha @sum + beta *c */
template <class OUT>
static __device__ __forceinline__ void finish_put(OUT *c, const struct gemm &g,
						  const struct finish &f, float sum, long i, int j)
{
	sum *= (float)g.alpha;
	if (g.beta != 0)
		sum += (float)g.beta * get(c);
	put(c, f(sum, i, j));
}

/* This lane's 16 bytes of row @row of [rows][k], from @l on; 0 outside. */
static __device__ __forceinline__ uint4 piece(const bf16 *p, long ld, int row, int rows, int l, int k)
{
	return row < rows && l < k ? *(const uint4 *)(p + row * ld + l) : uint4{};
}

/*
 * Columns of a row on their way to the second level cache, even while somebody still writes
 * them: what is asked for there stays what memory holds. Two lanes have a sector's 32 bytes.
 */
static __device__ __forceinline__ void ask(const bf16 *row, int l, int end, int step)
{
	if (threadIdx.x % 2 == 0)
		for (; l < end; l += step)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(row + l));
}

#endif
