// SPDX-License-Identifier: MIT
/*
 * Attention of one new query per sequence against its cache. A cluster of blocks owns
 * up to HEADS query heads that share keys and values; its keys go round in batches of
 * BATCH to groups of LANES lanes, each of which keeps an online softmax of its own.
 * These are put together in a fixed order: groups of a warp, warps, blocks of the
 * cluster through its shared memory. Which group takes a key depends on the key alone,
 * so bits do not depend on the other sequences. Before sm_90 a cluster is one block.
 * Many heads that share keys and values go to attn_step_mma.cu.
 */
#include "attn_step.cuh"

/* The groups of a warp, put together in its first LANES lanes and from there in @part. */
template <int LANES, int HEADS>
static __device__ __forceinline__ void step_warp(struct step_part<HEADS, LANES * 8> *part,
						 struct step_state<HEADS> &st)
{
	int lane = threadIdx.x % 32;

#pragma unroll
	for (int h = 0; h < HEADS; h++) {
		st.sum[h] = row_sum(st.sum[h]);
#pragma unroll
		for (int step = LANES; step < 32; step *= 2) {
			float m = fmaxf(st.max[h], __shfl_xor_sync(~0u, st.max[h], step));
			float fix = step_fix(st.max[h], m);

			st.max[h] = m;
			st.sum[h] *= fix;
			st.sum[h] += __shfl_xor_sync(~0u, st.sum[h], step);
#pragma unroll
			for (int n = 0; n < 8; n++) {
				st.o[h][n] *= fix;
				st.o[h][n] += __shfl_xor_sync(~0u, st.o[h][n], step);
			}
		}
		if (lane >= LANES)
			continue;
#pragma unroll
		for (int n = 0; n < 8; n++)
			part->o[h][lane * 8 + n] = st.o[h][n];
		if (!lane) {
			part->max[h] = st.max[h];
			part->sum[h] = st.sum[h];
		}
	}
}

/* Maximum and sum of head @h over the first @n of @N parts. */
template <int N, class PART>
static __device__ __forceinline__ float2 step_total(const PART *part, int n, int h)
{
	float2 total = { -INFINITY, 0 };

#pragma unroll
	for (int k = 0; k < N; k++)
		if (k < n)
			total.x = fmaxf(total.x, part[k].max[h]);
#pragma unroll
	for (int k = 0; k < N; k++)
		if (k < n)
			total.y += part[k].sum[h] * step_fix(part[k].max[h], total.x);
	return total;
}

/* Column @e of head @h over the same, relative to the maximum @max. */
template <int N, class PART>
static __device__ __forceinline__ float step_column(const PART *part, int n, int h, int e,
						    float max)
{
	float sum = 0;

#pragma unroll
	for (int k = 0; k < N; k++)
		if (k < n)
			sum += part[k].o[h][e] * step_fix(part[k].max[h], max);
	return sum;
}

/* Raw scores of this block's keys to gamma P. */
template <int LANES, int HEADS>
static __device__ void step_route(const struct step_run &p, const struct step_at &w, int h,
				  float2 total, float gamma)
{
	constexpr int GROUPS = STEP_THREADS / LANES;
	const struct attn_step &a = p.a;
	float *route = a.route + ((long)w.i * a.heads + w.h0 + h) * a.route_stride;
	int run = GROUPS * BATCH;

	for (int u0 = w.rank * run; u0 <= w.pos; u0 += w.ranks * run)
		for (int u = u0 + threadIdx.x; u < u0 + run && u <= w.pos; u += STEP_THREADS)
			route[u] = gamma / total.y * step_fix(route[u], total.x);
}

/* Queries of the block's heads, times scale, and the sequence's own key. */
template <int HEADS>
static __device__ void step_queries(float *to, const struct step_run &p, const struct step_at &w)
{
	const struct attn_step &a = p.a;
	int dk8 = div_up(a.dk, 8) * 8;

	for (int n = threadIdx.x; n < (HEADS + 1) * dk8; n += STEP_THREADS) {
		int h = n / dk8, e = n % dk8;
		const bf16 *q = bf16_of(a.q) + w.i * a.q_row + (w.h0 + h) * a.dk;
		float x = 0;

		if (h == HEADS)
			x = e < a.dk ? __bfloat162float(w.k[w.pos * a.k_row + e]) : 0;
		else if (h < w.heads)
			x = e < a.dk ? p.scale * __bfloat162float(q[e]) : 0;
		to[n] = x;
	}
}

template <int LANES, int HEADS, bool VEC>
static __global__ void __launch_bounds__(STEP_THREADS) step_kernel(struct step_run p)
{
	constexpr int WIDTH = LANES * 8;
	extern __shared__ __align__(16) char mem[];
	auto *m = (struct step_smem<HEADS, WIDTH> *)mem;
	const struct attn_step &a = p.a;
	uint4 (*ring)[2 * BATCH][32] = m->ring[threadIdx.x / 32];
	struct step_state<HEADS> st = {};
	struct step_at w;
	int turns;

	let_next();
	cluster_arrive();		/* this block runs: others may write to it */
	after_previous();
	w = step_place<LANES, HEADS>(p);
	turns = step_turns<LANES>(w);
	for (int n = 0; VEC && n < STAGES - 1; n++) {
		if (n < turns)
			step_fetch<LANES>(ring[n], p, w, step_key<LANES>(w, n));
		copy_commit();
	}
	step_queries<HEADS>(m->q, p, w);
#pragma unroll
	for (int h = 0; h < HEADS; h++)
		st.max[h] = -INFINITY;
	__syncthreads();
	/* a lane reads what it copied itself: no barrier */
	for (int n = 0; n < turns; n++) {
		int ahead = n + STAGES - 1;

		if (VEC && ahead < turns)
			step_fetch<LANES>(ring[ahead % STAGES], p, w, step_key<LANES>(w, ahead));
		copy_commit();
		copy_wait<STAGES - 1>();
		step_batch<LANES, HEADS, VEC>(st, p, w, m->q, ring[n % STAGES],
					      step_key<LANES>(w, n));
	}
	step_warp<LANES, HEADS>(&m->warp[threadIdx.x / 32], st);
	cluster_wait();
	__syncthreads();
	for (int n = threadIdx.x; n < HEADS * WIDTH; n += STEP_THREADS) {
		int h = n / WIDTH, e = n % WIDTH;
		float2 total = step_total<STEP_WARPS>(m->warp, STEP_WARPS, h);

		cluster_peer(&m->block[w.rank].o[h][e], 0)[0] =
			step_column<STEP_WARPS>(m->warp, STEP_WARPS, h, e, total.x);
		if (e < w.ranks) {
			cluster_peer(&m->block[w.rank].max[h], e)[0] = total.x;
			cluster_peer(&m->block[w.rank].sum[h], e)[0] = total.y;
		}
	}
	cluster_arrive();
	cluster_wait();
	for (int n = threadIdx.x; !w.rank && n < w.heads * WIDTH; n += STEP_THREADS) {
		int h = n / WIDTH, e = n % WIDTH;
		long row = (long)w.i * a.heads + w.h0 + h;
		float2 total = step_total<CLUSTER_MAX>(m->block, w.ranks, h);
		float f = (a.gamma ? a.gamma[row] : 1) / total.y;

		if (w.e0 + e < a.dv)
			bf16_of(a.o)[row * a.dv + w.e0 + e] = __float2bfloat16(
				f * step_column<CLUSTER_MAX>(m->block, w.ranks, h, e, total.x));
	}
	for (int h = 0; a.route && !w.e0 && h < w.heads; h++)
		step_route<LANES, HEADS>(p, w, h, step_total<CLUSTER_MAX>(m->block, w.ranks, h),
					 a.gamma ? a.gamma[(long)w.i * a.heads + w.h0 + h] : 1);
}

template <int LANES, int HEADS, bool VEC> static void step_launch(struct step_run &p)
{
	const struct attn_step &a = p.a;
	auto *kernel = step_kernel<LANES, HEADS, VEC>;
	int bytes = sizeof(struct step_smem<HEADS, LANES * 8>) +
		(HEADS + 1) * div_up(a.dk, 8) * 8 * (int)sizeof(float);

	p.chunks = div_up(p.per, HEADS);
	if (bytes > 48 << 10)
		shared_room(kernel, bytes);
	launch_clusters(kernel,
			dim3(step_split(a), p.units * p.chunks * div_up(a.dv, LANES * 8), a.b),
			STEP_THREADS, bytes, p);
}

template <int LANES, int HEADS> static void step_aligned(struct step_run &p)
{
	const struct attn_step &a = p.a;
	uintptr_t at = (uintptr_t)a.k | (uintptr_t)a.v;
	long strides = a.k_row | a.k_head | a.v_row | a.v_head | a.cache_stride | a.dk | a.dv;

	if (at % 16 == 0 && strides % 8 == 0 && MAX(a.dk, a.dv) <= LANES * 8)
		step_launch<LANES, HEADS, true>(p);
	else
		step_launch<LANES, HEADS, false>(p);
}

template <int LANES> static void step_heads(struct step_run &p)
{
	if (p.per == 1)
		step_aligned<LANES, 1>(p);
	else
		step_aligned<LANES, 4>(p);
}

void k_attn_step(const struct attn_step *a)
{
	struct step_run p = {};
	int kv_heads = a->heads / a->group;

	p.a = *a;
	p.scale = a->scale;
	p.ra = a->ra_scale;
	p.units = a->k_head || a->v_head ? kv_heads : 1;
	p.per = a->heads / p.units;
	if (attn_step_mma(&p))
		return;
	if (MAX(a->dk, a->dv) <= 64)
		step_heads<8>(p);
	else if (MAX(a->dk, a->dv) <= 128)
		step_heads<16>(p);
	else
		step_heads<32>(p);
}
