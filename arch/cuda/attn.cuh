/* SPDX-License-Identifier: MIT */
/**
 * DOC: attention on the device
 *
 * What the paths of forward and backward share: the arguments as kernels take them,
 * and which path takes a shape. Paths: wgmma (sm_90a; widths 64 and 128, no
 * reciprocal term), mma.sync (widths up to 128, no reciprocal term), and a general
 * one on mma.sync for everything.
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
 * @do_k: it makes dk
 * @do_v: it makes dv
 */
struct attn_run {
	struct attn a;
	float scale, ra;
	bool vec;
	bf16 *dq, *dk, *dv;
	float *dgamma;
	const bf16 *d_o;
	float *delta;
	int q_per;
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

/* Offsets of position 0 of sequence @i for query head @h. */
static inline __host__ __device__ long attn_q(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.q_row + h * a.q_head;
}

static inline __host__ __device__ long attn_k(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.k_row + h / a.group * a.k_head;
}

static inline __host__ __device__ long attn_v(const struct attn &a, int i, int h)
{
	return (long)i * a.t * a.v_row + h / a.group * a.v_head;
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
 * Heads that run together: blocks go through SECTION (sequence, head) pairs at a time,
 * those with the most work first. The keys and values of a section stay in the L2
 * cache (64 of 1024 positions by 64: 16 MiB of 50), and the last blocks of a launch
 * are short ones.
 */
enum { SECTION = 32 };

/* Block @index of @blocks a pair, @pairs pairs: rank by work in *rank, the pair returned. */
static __device__ __forceinline__ int attn_schedule(int index, int blocks, int pairs, int *rank)
{
	int first = index / (SECTION * blocks) * SECTION, n = min(SECTION, pairs - first);

	index -= first * blocks;
	*rank = index / n;
	return first + index % n;
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

/** attn_mma_takes() - can the mma.sync path run this shape? */
bool attn_mma_takes(const struct attn_run &p);

/** attn_mma_fwd() - mma.sync path */
void attn_mma_fwd(const struct attn_run &p);

/** attn_mma_bwd() - mma.sync path; delta is there already */
void attn_mma_bwd(const struct attn_run &p);

/** attn_wgmma_takes() - can the sm_90a path run this shape on this device? */
bool attn_wgmma_takes(const struct attn_run &p);

/** attn_wgmma_fwd() - sm_90a path */
void attn_wgmma_fwd(const struct attn_run &p);

/** attn_wgmma_bwd() - sm_90a path; makes delta and dgamma too */
void attn_wgmma_bwd(const struct attn_run &p);

#endif
