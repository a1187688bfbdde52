/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences whose decays are vectors backward, on mma.sync: a chunk's operands
 *
 * Chunks of TILE positions, a block for each. A warp has 16 rows and a quarter of the columns.
 */
#ifndef TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH
#define TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH

#include "vector.cuh"

enum {
	BWD_THREADS = 512,
	BWD_WARPS = BWD_THREADS / 32,
	GROUP = 3,		/* levels whose operands stand in shared memory at a time, of 6 */
	TILE_RUNS = TILE / RUN,
	VALUES = 64,		/* columns of values of a state that stand there */
};

/*
 * v, d_o: by slices. k: keys; when scores are there these with decays to the chunk's end. state: a slice of the
 * state before the chunk, and of the gradient of the one behind it; other: the same of every
 * second slice. x: queries and keys of levels. d: D times the scale; a: scores. log: sums of
 * logarithms to base 2 from the chunk's beginning on, behind a row of 0. own: q dq - k dk; keys:
 * sums of k dk from states over 16 rows each; both: parts of <state, gradient>; rest: sums of own.
 * from: of the state and the gradient, the chunk that has what sweeps left out, or -1.
 */
template <class S> struct bwd_smem {
	static constexpr int PARTS = BWD_WARPS / (S::K / 16), SEGS = BWD_THREADS / S::K;
	bf16 q[TILE * S::K], k[TILE * S::K];
	bf16 v[S::V / VALUES][TILE * VALUES], d_o[S::V / VALUES][TILE * VALUES];
	bf16 state[2][S::K * VALUES];
	union {
		bf16 x[GROUP][TILE * S::K], other[2][S::K * VALUES];
		float run[TILE_RUNS][S::K], own[TILE][S::LOGS];
	};
	union {
		bf16 d[TILE * TILE];
		struct {
			float keys[TILE / 16][S::K], both[PARTS][S::K], rest[SEGS][S::K];
		};
	};
	bf16 a[TILE * TILE];
	float log[1 + TILE][S::LOGS];
	struct mma_head head;
	int from[2];
};

/*
 * A warp's rows, first column of keys and first of a slice of values; pair: the element of a tile
 * of keys where its lane's first accumulators belong.
 */
template <class S> struct part {
	static constexpr int K = S::K / 4, N = K / 8;
	int row, key, value, pair;
};

template <class S> static __device__ __forceinline__ struct part<S> part_of(void)
{
	int warp = threadIdx.x / 32, row = warp % 4 * 16, key = warp / 4 * part<S>::K;

	return { row, key, warp / 4 * (VALUES / 4),
		 tile_at<S::K>(row + threadIdx.x % 32 / 4, key / 8) + (int)threadIdx.x % 4 * 2 };
}

/* Of accumulators c[n][r] and the next, the elements of a tile of keys. */
template <class S>
static __device__ __forceinline__ float2 pair_of(const bf16 *x, const struct part<S> &w, int n,
						 int r)
{
	return pair_get(x + chunk_at(w.pair, n) + r * 4 * S::K);
}

/* Accumulators of rows of keys: gradients of queries and keys, and q dq - k dk. */
template <class S> struct grads {
	float dq[part<S>::N][4], dk[part<S>::N][4], own[part<S>::N][4];
};

/* The runs of two columns that a thread has: f(run, the first column). */
template <class S, class F> static __device__ __forceinline__ void each_tile_run(F f)
{
	mma_each<TILE_RUNS * S::K / 2, BWD_THREADS>([&](unsigned int j) {
		f(j / (S::K / 2), j % (S::K / 2) * 2);
	});
}

template <class S>
static __device__ __forceinline__ float2 &log_of(bwd_smem<S> &m, int row, int c)
{
	return *(float2 *)&m.log[row][c];
}

template <class S>
static __device__ __forceinline__ float2 log_of(const bwd_smem<S> &m, int row, int c)
{
	return *(const float2 *)&m.log[row][c];
}

/* Decays between rows @i and @j of logarithms, whichever comes first. */
template <class S>
static __device__ __forceinline__ float2 decay_between(const bwd_smem<S> &m, int i, int j, int c)
{
	float2 x = log_of<S>(m, i, c), y = log_of<S>(m, j, c);

	return { exp2_fast(-fabsf(x.x - y.x)), exp2_fast(-fabsf(x.y - y.y)) };
}

/* Where at level @l the half ends, in rows of logarithms, that position @t decays from or to. */
static __device__ __forceinline__ int border(int l, int t)
{
	return (t >> l | 1) << l;
}

/* Sums of runs, of logarithms as they came. */
template <class S> static __device__ __forceinline__ void run_sums(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		float2 all = { 0, 0 };

#pragma unroll
		for (int r = 0; r < RUN; r++)
			all += log_of<S>(m, 1 + run * RUN + r, c) * LOG2E;
		*(float2 *)&m.run[run][c] = all;
	});
}

/* Sums from the chunk's beginning on, in their places, when those are there. */
template <class S> static __device__ __forceinline__ void log_sums(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		float2 sum = { 0, 0 };

#pragma unroll
		for (int j = 0; j < TILE_RUNS - 1; j++)
			if (j < run)
				sum += *(const float2 *)&m.run[j][c];
		if (!run)
			log_of<S>(m, 0, c) = sum;
#pragma unroll
		for (int r = 0; r < RUN; r++) {
			sum += log_of<S>(m, 1 + run * RUN + r, c) * LOG2E;
			log_of<S>(m, 1 + run * RUN + r, c) = sum;
		}
	});
}

/* Decays in a run of two columns: of each position, and of those behind it. */
template <class S>
static __device__ __forceinline__ struct run_decays tile_decays_of(const bwd_smem<S> &m, int run,
								   int c)
{
	struct run_decays x;

#pragma unroll
	for (int r = 0; r < RUN; r++)
		x.alpha[r] = decay_between<S>(m, run * RUN + r, run * RUN + r + 1, c);
	run_decays_to(x);
	return x;
}

/* Operands of levels 0 to 2. */
template <class S> static __device__ __forceinline__ void operands_near(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		struct run_decays d = tile_decays_of<S>(m, run, c);
		int first = tile_at<S::K>(run * RUN, c / 8) + c % 8;
		float2 from = { 1, 1 };

#pragma unroll
		for (int r = 0; r < RUN; r++) {
			int at = chunk_at(first, r) + r * S::K;
			float2 q = pair_get(m.q + at), k = pair_get(m.k + at);

			from *= d.alpha[r];
			levels_inside(m, at, r, q, k, d.alpha);
			pair_put(m.x[2] + at, run & 1 ? q * from : k * d.to[r]);
		}
	});
}

/* Operands of levels 3 to 5, and keys with decays to the chunk's end in their places. */
template <class S> static __device__ __forceinline__ void operands_far(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		struct run_decays d = tile_decays_of<S>(m, run, c);
		int first = tile_at<S::K>(run * RUN, c / 8) + c % 8, t = run * RUN;
		float2 from = { 1, 1 }, level[GROUP], end = decay_between<S>(m, t + RUN, TILE, c);

#pragma unroll
		for (int l = 0; l < GROUP; l++)
			level[l] = decay_between<S>(m, t >> (l + 3) & 1 ? t : t + RUN, border(l + 3, t),
						    c);
#pragma unroll
		for (int r = 0; r < RUN; r++) {
			int at = chunk_at(first, r) + r * S::K;
			float2 q = pair_get(m.q + at), k = pair_get(m.k + at) * d.to[r];

			from *= d.alpha[r];
			q *= from;
#pragma unroll
			for (int l = 0; l < GROUP; l++)
				pair_put(m.x[l] + at, (t >> (l + 3) & 1 ? q : k) * level[l]);
			pair_put(m.k + at, k * end);
		}
	});
}

#endif
