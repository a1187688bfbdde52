/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences on the device
 *
 * What the kernels share. They take every shape up to LINATTN_WIDTH_MAX, in bf16 or float.
 */
#ifndef TENON_CUDA_LINATTN_CUH
#define TENON_CUDA_LINATTN_CUH

#include "common.cuh"
#include "kernels_linattn.h"
#include "rows.cuh"

enum {
	LINATTN_ROWS = 16,		/* positions of a block */
	LINATTN_WIDTH_MAX = 1024,	/* of keys and of values */
};

/** linattn_head() - which head of an operand head @h uses */
static inline __host__ __device__ int linattn_head(const struct linattn &a, unsigned int operand,
						   int h)
{
	return a.shared & operand ? h / a.group : h;
}

/* Position 0 of sequence @i for head @h. */
static inline __host__ __device__ const real *linattn_q(const struct linattn &a, int i, int h)
{
	return real_of(a.q) + (long)i * a.t * a.q_row + linattn_head(a, LINATTN_Q, h) * a.q_head;
}

static inline __host__ __device__ const real *linattn_k(const struct linattn &a, int i, int h)
{
	return real_of(a.k) + (long)i * a.t * a.k_row + linattn_head(a, LINATTN_K, h) * a.k_head;
}

static inline __host__ __device__ const real *linattn_v(const struct linattn &a, int i, int h)
{
	return real_of(a.v) + (long)i * a.t * a.v_row + linattn_head(a, LINATTN_V, h) * a.v_head;
}

/* NULL where nothing decays by it */
static inline __host__ __device__ const float *linattn_g(const struct linattn &a, int i, int h)
{
	if (a.decay > LINATTN_SCALAR)
		return NULL;
	return a.g + (long)i * a.t * a.g_row + linattn_head(a, LINATTN_G, h) * a.g_head;
}

/* alpha where it is one number for all positions */
static inline __host__ __device__ float linattn_alpha(const struct linattn &a, int h)
{
	return a.decay == LINATTN_FIXED ? 1 - exp2f(-5 - h) : 1;
}

/** linattn_any_fwd() - general path, any shape */
void linattn_any_fwd(const struct linattn *a);

#ifdef CONFIG_REAL_BF16
/** linattn_mma_takes() - can the mma.sync path run this shape? */
bool linattn_mma_takes(const struct linattn *a);
#else
static inline bool linattn_mma_takes(const struct linattn *a)
{
	(void)a;
	return false;
}
#endif

/** linattn_mma_scalar_fwd() - mma.sync path where one decay is for all of a key, or none is */
void linattn_mma_scalar_fwd(const struct linattn *a);

/** linattn_mma_vector_fwd() - mma.sync path where each element of a key has its own */
void linattn_mma_vector_fwd(const struct linattn *a);

#endif
