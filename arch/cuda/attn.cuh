/* SPDX-License-Identifier: MIT */
/**
 * DOC: attention on the device
 *
 * What the paths of forward and backward share: the arguments as kernels take them,
 * and which path takes a shape. Paths: wgmma (sm_90a; widths 64 and 128, no
 * reciprocal term), mma.sync (widths up to 128, no reciprocal term), and a general
 * one for everything, on mma.sync or, for float, on ordinary multiply-adds.
 */
#ifndef TENON_CUDA_ATTN_CUH
#define TENON_CUDA_ATTN_CUH

#include "attn_tile.cuh"
#include "common.cuh"
#include "kernels_attn.h"

/**
 * struct attn_run - struct attn with what only the device needs
 * @scale: of the scores
 * @ra: a.ra_scale
 * @vec: every row of every tensor begins at a multiple of 16 bytes
 * @q_per: query heads of a block that makes dk or dv
 * @near: log2 of the sequences of a section, attn_grid()
 * @do_k: it makes dk
 * @do_v: it makes dv
 */
struct attn_run {
	struct attn a;
	float scale, ra;
	bool vec;
	real *dq, *dk, *dv;
	float *dgamma;
	const real *d_o;
	float *delta;
	int q_per, near;
	bool do_k, do_v;
};

/** attn_k_heads() - different key heads */
static inline __host__ __device__ int attn_k_heads(const struct attn &a)
{
	return a.k_head ? a.heads / a.group : 1;
}

/** attn_v_heads() - different value heads */
static inline __host__ __device__ int attn_v_heads(const struct attn &a)
{
	return a.v_head ? a.heads / a.group : 1;
}

/* Key and value head of query head @h where they have several. */
static inline __host__ __device__ int attn_kv_head(const struct attn &a, int h)
{
	return a.group == 1 ? h : h / a.group;
}

/* Offsets of position 0 of sequence @i for query head @h. */
static inline __host__ __device__ long attn_q(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.q_row + h * a.q_head;
}

static inline __host__ __device__ long attn_k(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.k_row + attn_kv_head(a, h) * a.k_head;
}

static inline __host__ __device__ long attn_v(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.v_row + attn_kv_head(a, h) * a.v_head;
}

static inline __host__ __device__ long attn_o(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.o_row + h * a.o_head;
}

/* Offset of a value per position and head: lse, gamma, delta. */
static inline __host__ __device__ long attn_stat(const struct attn &a, int i, int pos, int h)
{
	return ((long)i * a.t + pos) * a.heads + h;
}

/*
 * Order of blocks: a section of sequences with all their heads at a time, and in it the
 * blocks with the most work first. The keys and values of a section stay in the L2 cache
 * (1024 positions of 32 heads of 64: 8 MiB), and the last blocks of a launch are short.
 */
enum { SECTION = 32 };		/* heads of a section, at least */

/**
 * attn_grid() - blocks of a kernel
 * @p: gets @p->near
 * @blocks: blocks of a head
 * @heads: heads of a sequence
 */
static inline dim3 attn_grid(struct attn_run *p, int blocks, int heads)
{
	p->near = 0;
	while (heads << p->near < SECTION && 1 << p->near < p->a.b)
		p->near++;
	return dim3(heads, blocks << p->near, div_up(p->a.b, 1 << p->near));
}

/* Sequence of this block, which may be behind the last: nothing to do. */
static __device__ __forceinline__ int attn_sequence(const struct attn_run &p)
{
	return blockIdx.z << p.near | (blockIdx.y & ((1 << p.near) - 1));
}

/* Rank of this block among those of its head, 0 for the most work. */
static __device__ __forceinline__ int attn_rank(const struct attn_run &p)
{
	return blockIdx.y >> p.near;
}

/* Backward, rows queries: @rows of row @r, the query at @pos; behind the end ds becomes 0. */
static __device__ __forceinline__ void row_stats_get(struct row_stats &rows, int r,
						     const struct attn_run &p, int i, int pos,
						     int h)
{
	long at = attn_stat(p.a, i, pos, h);
	bool inside = pos < p.a.t;

	rows.lse[r] = inside ? p.a.lse[at] * LOG2E : INFINITY;
	rows.delta[r] = inside ? p.delta[at] : 0;
	rows.gamma[r] = inside && p.a.gamma ? p.a.gamma[at] : 1;
}

/** attn_run_of() - arguments for the device; backward fills the rest */
struct attn_run attn_run_of(const struct attn *a);

/** attn_any_fwd() - general path, any shape */
void attn_any_fwd(const struct attn_run &p);

/** attn_any_bwd() - general path; delta is there already */
void attn_any_bwd(const struct attn_run &p);

#ifdef CONFIG_REAL_BF16
/** attn_mma_takes() - can the mma.sync path run this shape? */
bool attn_mma_takes(const struct attn_run &p);

/** attn_wgmma_takes() - can the sm_90a path run this shape on this device? */
bool attn_wgmma_takes(const struct attn_run &p);
#else
static inline bool attn_mma_takes(const struct attn_run &p)
{
	(void)p;
	return false;
}

static inline bool attn_wgmma_takes(const struct attn_run &p)
{
	(void)p;
	return false;
}
#endif

/** attn_mma_fwd() - mma.sync path */
void attn_mma_fwd(const struct attn_run &p);

/** attn_mma_bwd() - mma.sync path; delta is there already */
void attn_mma_bwd(const struct attn_run &p);

/** attn_wgmma_fwd() - sm_90a path */
void attn_wgmma_fwd(const struct attn_run &p);

/** attn_wgmma_bwd() - sm_90a path; makes delta and dgamma too */
void attn_wgmma_bwd(const struct attn_run &p);

#endif
