/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of routing rows, and lists of the largest entries
 *
 * Building a route and gathering along one recompute gamma * P by the same function on
 * the same tiles, so that a threshold selects the same entries each time.
 *
 * An entry's key is its float bits (not negative, so ordered as the numbers are) above
 * its inverted position: of equal entries the smaller position is the larger key. 0 is
 * no entry. A warp holds a list of 32 R keys, descending, entry j in lane j % 32.
 */
#ifndef TENON_CUDA_ROUTE_CUH
#define TENON_CUDA_ROUTE_CUH

#include "kernels_route.h"
#include "rows.cuh"
#include "score.cuh"

typedef unsigned long long route_key;

enum { TOPK_MAX = 256 };	/* 32 times the largest R */

static __device__ __forceinline__ route_key key_of(float x, int u)
{
	return (route_key)__float_as_uint(x) << 32 | ~(uint32_t)u;
}

static __device__ __forceinline__ float key_value(route_key key)
{
	return __uint_as_float(key >> 32);
}

static __device__ __forceinline__ int key_index(route_key key)
{
	return (int)~(uint32_t)key;
}

/** list_insert() - one more key; the smallest goes */
template <int R> static __device__ __forceinline__ void list_insert(route_key (&list)[R],
								    route_key key)
{
	int lane = threadIdx.x % 32, at = 0;

#pragma unroll
	for (int r = 0; r < R; r++)
		at += __popc(__ballot_sync(~0u, list[r] > key));
#pragma unroll
	for (int r = R - 1; r >= 0; r--) {
		route_key before = __shfl_up_sync(~0u, list[r], 1);
		route_key last = r ? __shfl_sync(~0u, list[r ? r - 1 : 0], 31) : 0;
		int j = 32 * r + lane;

		before = lane ? before : last;
		list[r] = j < at ? list[r] : j == at ? key : before;
	}
}

/** list_offer() - each lane's key, or 0; @least: what a key must exceed, kept up to date */
template <int R> static __device__ __forceinline__ void
list_offer(route_key (&list)[R], route_key key, int topk, route_key &least)
{
	for (uint32_t more = __ballot_sync(~0u, key > least); more; more &= more - 1) {
		route_key one = __shfl_sync(~0u, key, __ffs(more) - 1);

		if (one <= least)
			continue;
		list_insert<R>(list, one);
#pragma unroll
		for (int r = 0; r < R; r++)
			if (r == (topk - 1) / 32)
				least = __shfl_sync(~0u, list[r], (topk - 1) % 32);
	}
}

/** route_row() - number of a row in index, weight, thr and inv */
static __device__ __forceinline__ long route_row(const struct route &r, int i, int set, int t)
{
	return ((long)i * r.a.t + t) * r.nr + set;
}

/** route_factor() - of a row's kept entries, from their sum */
static __device__ __forceinline__ float route_factor(bool normalize, double sum)
{
	return normalize ? 1 / fmax(sum, 1e-8) : 1;
}

/**
 * route_tile() - p = gamma P of row set @set, heads averaged where nr is 1; 0 where u > t
 * and behind the last query
 *
 * Where a block has several groups of threads each gets its share of the heads alone.
 */
template <bool BAND = true> static __device__ __forceinline__ void
route_tile(tile_acc &p, struct score_smem &mem, const struct route &r, const struct score_run &run,
	   int i, int set, int t0, int u0)
{
	const struct attn &a = r.a;
	int heads = r.nr == 1 ? a.heads : 1, first = r.nr == 1 ? 0 : set;
	int h0 = first + heads * threadIdx.y / blockDim.y;
	int h1 = first + heads * (threadIdx.y + 1) / blockDim.y;
	float share = 1.0f / heads;

	score_zero(p);
	each_score_tile<BAND>(mem, run, i, h0, h1, t0, u0, [&](int h, const tile_acc &s) {
		float g[2];

#pragma unroll
		for (int half = 0; half < 2; half++) {
			int t = t0 + acc_row(2 * half);

			g[half] = t >= a.t ? 0 :
				  a.gamma ? __fmul_rn(share, a.gamma[attn_stat(a, i, t, h)]) : share;
		}
#pragma unroll
		for (int c = 0; c < TILE / 8; c++)
#pragma unroll
			for (int k = 0; k < 4; k++)
				p[c][k] = __fmaf_rn(g[k / 2], exp2_fast(s[c][k]), p[c][k]);
	});
#pragma unroll
	for (int c = 0; c < TILE / 8; c++)
#pragma unroll
		for (int k = 0; k < 4; k++)
			if (u0 + acc_col(c, k) > t0 + acc_row(k) || t0 + acc_row(k) >= a.t)
				p[c][k] = 0;
}

#endif
