/* SPDX-License-Identifier: MIT */
/**
 * DOC: products of each expert's rows
 *
 * Only the device knows how many rows an expert has, so a launch has blocks for the most
 * tiles that there can be, and each finds its expert from the experts' first rows.
 */
#ifndef TENON_CUDA_MOE_GEMM_CUH
#define TENON_CUDA_MOE_GEMM_CUH

#include "common.cuh"
#include "kernels_moe.h"

/**
 * struct grouped - struct gemm of one expert with who has which rows
 * @g: m, or for a gradient k, comes from @first
 * @vec: rows of operands begin at multiples of 16 bytes and are whole pieces of 16
 */
struct grouped {
	struct gemm g;
	const int32_t *first;
	int experts;
	bool vec;
};

/* Rows of an expert from @row on. */
struct group {
	int e, row, rows;
};

/* Most tiles of @tile rows that @pairs rows of @experts can have. */
static inline int group_tiles(int pairs, int experts, int tile)
{
	return pairs / tile + MIN(pairs, experts);
}

/**
 * group_at() - rows of tile @n: at most @tile of one expert, none behind the last tile
 *
 * By a whole warp: each lane has an expert.
 */
static __device__ __forceinline__ struct group group_at(const struct grouped &p, int n, int tile)
{
	int lane = threadIdx.x % 32;

	for (int e0 = 0; e0 < p.experts; e0 += 32) {
		int e = e0 + lane, row = 0, rows = 0, tiles, sum, mine;
		unsigned int has;

		if (e < p.experts) {
			row = p.first[e];
			rows = p.first[e + 1] - row;
		}
		sum = tiles = (rows + tile - 1) / tile;
#pragma unroll
		for (int step = 1; step < 32; step *= 2) {
			int got = __shfl_up_sync(~0u, sum, step);

			sum += lane >= step ? got : 0;
		}
		has = __ballot_sync(~0u, n < sum);
		if (!has) {
			n -= __shfl_sync(~0u, sum, 31);
			continue;
		}
		mine = __ffs(has) - 1;
		n -= __shfl_sync(~0u, sum - tiles, mine);
		row = __shfl_sync(~0u, row, mine) + n * tile;
		rows = __shfl_sync(~0u, rows, mine) - n * tile;
		return { e0 + mine, row, rows < tile ? rows : tile };
	}
	return { 0, 0, 0 };
}

#endif
