/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences on mma.sync (sm_80 and later)
 *
 * A sequence is cut into segments, so that there are blocks for the whole device. One pass
 * makes what each segment adds to the state, one carries states from segment to segment, a
 * third has a block go through each segment, chunk by chunk, with a state in registers:
 * float, rounded to bf16 where a product reads it. Backward segments are gone through once:
 * rest.cuh. On sm_90a some of its products are wgmma.
 */
#ifndef TENON_CUDA_LINATTN_MMA_SEGMENTS_CUH
#define TENON_CUDA_LINATTN_MMA_SEGMENTS_CUH

#include "../linattn_any.cuh"
#include "mma_tile.cuh"

/* Blocks wanted: one, two or three for each multiprocessor of an H200. */
enum {
	VECTOR_BLOCKS = 132, VECTOR_KEEP_BLOCKS = 264, SCALAR_BLOCKS = 264, SCALAR_KEEP_BLOCKS = 396
};

/**
 * struct mma_run - a recurrence in segments
 * @a: the recurrence
 * @seg: positions of a segment, a multiple of 64
 * @segs: of a sequence
 * @state: [b][heads][@segs - 1][dk][dv], what segments add; then the states behind them
 * @decay: [b][heads][@segs - 1][dk], of a whole segment; backward as mma_kept_decay() has them
 *
 * Backward:
 * @d_o: gradient of o
 * @dq: where gradients go
 * @dk: the same of keys
 * @dv: of values
 * @dg: of decays, or NULL
 * @dg_row: row stride of @dg
 * @dg_head: head stride of @dg, heads that share having their own
 * @ds1: gradient of the last state, or NULL
 * @ds0: where that of the first goes, or NULL
 * @dstate: as @state, of gradients of states behind segments
 * @kept: [2][b][heads][chunks of TILE][dk][dv], states before chunks and gradients behind them,
 *	but for what mma_rest_from() has of them
 */
struct mma_run {
	struct linattn a;
	int seg, segs;
	float *state, *decay;
	const real *d_o;
	struct any_out dq, dk, dv;
	float *dg;
	long dg_row, dg_head;
	const float *ds1;
	float *ds0, *dstate;
	bf16 *kept;
};

/**
 * mma_run_of() - segments of a recurrence forward, of its shape alone
 * @slices: blocks that share the values of a head
 * @blocks: that there should be
 */
struct mma_run mma_run_of(const struct linattn *a, int slices, int blocks);

/** mma_scalar_room() - shared memory that a block takes forward, where there is one decay */
size_t mma_scalar_room(const struct linattn &a);

/** mma_scalar_bwd_room() - the same backward */
size_t mma_scalar_bwd_room(const struct linattn &a);

/** mma_vector_room() - forward where decays are vectors */
size_t mma_vector_room(const struct linattn &a);

/** mma_vector_bwd_room() - the same backward */
size_t mma_vector_bwd_room(const struct linattn &a);

/** mma_vector_keep() - states and gradients of states, kept for every chunk; what segments add */
void mma_vector_keep(const struct mma_run &p);

/** mma_scan() - from what segments add to the states behind them */
void mma_scan(const struct mma_run &p);

/**
 * mma_scan_kept() - from what segments add, to the state and to its gradient, to what there is
 * before each, which is kept where mma_rest_from() looks for it; and ds0
 */
void mma_scan_kept(const struct mma_run &p);

/** mma_vector_states() - states behind all segments but the last, where decays are vectors */
void mma_vector_states(const struct mma_run &p);

/** mma_scalar_bwd() - gradients where there is one decay */
void mma_scalar_bwd(const struct mma_run &p);

/** mma_vector_bwd() - gradients where decays are vectors */
void mma_vector_bwd(const struct mma_run &p);

/* Of segment @n of head @at. */
static __device__ __forceinline__ float *mma_decay(const struct mma_run &p, int at, int n)
{
	return p.decay + ((size_t)at * (p.segs - 1) + n) * p.a.dk;
}

/* State of head @at behind segment @n. */
static __device__ __forceinline__ float *mma_state(const struct mma_run &p, int at, int n)
{
	return p.state + ((size_t)at * (p.segs - 1) + n) * p.a.dk * p.a.dv;
}

static __device__ __forceinline__ float *mma_dstate(const struct mma_run &p, int at, int n)
{
	return p.dstate + ((size_t)at * (p.segs - 1) + n) * p.a.dk * p.a.dv;
}

/* Of chunk @n of head @at: the state before it, or with @back the gradient of the one behind. */
static __device__ __forceinline__ bf16 *mma_kept(const struct mma_run &p, bool back, int at, int n)
{
	size_t head = (size_t)back * p.a.b * p.a.heads + at;

	return p.kept + (head * div_up(p.a.t, TILE) + n) * p.a.dk * p.a.dv;
}

/*
 * Decays over chunk @n of head @at and all before it in its segment, with @back all behind it: one,
 * or dk of them.
 */
static __device__ __forceinline__ float *mma_kept_decay(const struct mma_run &p, bool back, int at,
							int n)
{
	size_t head = (size_t)back * p.a.b * p.a.heads + at;

	return p.decay + (head * div_up(p.a.t, TILE) + n) *
				 (p.a.decay == LINATTN_VECTOR ? p.a.dk : 1);
}

/* State before segment @n, NULL: 0; @add: as far as what a segment adds is concerned. */
static __device__ __forceinline__ const float *mma_first(const struct mma_run &p, int at, int n,
							 bool add)
{
	if (!n)
		return p.a.s0 ? p.a.s0 + (size_t)at * p.a.dk * p.a.dv : NULL;
	return add ? NULL : mma_state(p, at, n - 1);
}

/* What is there before a block begins with segment @n, or with @back behind it; NULL: 0. */
static __device__ __forceinline__ const float *mma_begin(const struct mma_run &p, bool back, int at,
							 int n)
{
	const float *all = back ? p.ds1 : p.a.s0;

	return n == (back ? p.segs - 1 : 0) && all ? all + (size_t)at * p.a.dk * p.a.dv : NULL;
}

/* Where what segment @n adds to the state goes, or with @back to its gradient; NULL: nowhere. */
static __device__ __forceinline__ float *mma_added(const struct mma_run &p, bool back, int at, int n)
{
	if (!back)
		return n < p.segs - 1 ? mma_state(p, at, n) : NULL;
	if (!n)
		return p.ds0 ? p.ds0 + (size_t)at * p.a.dk * p.a.dv : NULL;
	return mma_dstate(p, at, n - 1);
}

/* Where gradients of one head of one sequence go: activations, or parts in float. */
struct mma_out {
	real *act;
	float *part;
	int row, width;
};

/**
 * struct mma_head - one head of one sequence: position 0 of all that a block reads or writes
 * @one: logarithm of the decay to base 2 where there is no @g
 */
struct mma_head {
	const real *q, *k, *v, *d_o;
	const float *g;
	float *dg, one;
	struct mma_out dq, dk, dv;
};

static __device__ __forceinline__ struct mma_out mma_out_of(const struct any_out &o,
							    const struct linattn &a, int i, int h)
{
	long at = (long)i * a.t;

	return { o.act + at * o.row + h * o.head,
		 o.part ? o.part + (at * a.heads + h) * o.width : NULL,
		 o.part ? a.heads * o.width : (int)o.row, o.width };
}

static __device__ __forceinline__ struct mma_head mma_head_at(const struct mma_run &p, int i, int h)
{
	const struct linattn &a = p.a;

	return {
		linattn_q(a, i, h), linattn_k(a, i, h), linattn_v(a, i, h),
		p.d_o + ((long)i * a.t * a.heads + h) * a.dv, linattn_g(a, i, h),
		p.dg + (long)i * a.t * p.dg_row + h * p.dg_head, log2f(linattn_alpha(a, h)),
		mma_out_of(p.dq, a, i, h), mma_out_of(p.dk, a, i, h), mma_out_of(p.dv, a, i, h),
	};
}

/**
 * mma_head_of() - the same in shared memory, made once, for its parts take many instructions and
 * few are needed at a time; by all threads, before any uses it
 */
static __device__ __forceinline__ void mma_head_of(struct mma_head &x, const struct mma_run &p,
						   int i, int h)
{
	if (!threadIdx.x)
		x = mma_head_at(p, i, h);
	__syncthreads();
}

/* 16 rows from position @t on, of those before @end: accumulators of columns @col on. */
template <int N>
static __device__ __forceinline__ void mma_rows_put(const struct mma_out &o, int t, int end,
						    int col, const float (*c)[4])
{
	int pair = col + threadIdx.x % 4 * 2, four = col + mma_swap_col();

	t += threadIdx.x % 32 / 4;
#pragma unroll
	for (int r = 0; r < 4; r += 2, t += 8)
		if (o.part) {
			float *to = o.part + (long)t * o.row + pair;

#pragma unroll
			for (int n = 0; n < N; n++)
				if (t < end && pair + 8 * n < o.width)
					*(float2 *)(to + 8 * n) = make_float2(c[n][r], c[n][r + 1]);
		} else {
			real *to = o.act + (long)t * o.row + four;

#pragma unroll
			for (int n = 0; n < N; n += 2) {
				uint2 x = mma_swap(c[n] + r, c[n + 1] + r);

				if (t < end && four + 8 * n < o.width)
					*(uint2 *)(to + 8 * n) = x;
			}
		}
}

#endif
