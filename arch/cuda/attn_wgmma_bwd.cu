// SPDX-License-Identifier: MIT
/*
 * Attention backward on wgmma (sm_90a), as two kernels without atomics: dq runs over
 * keys, dk and dv run over queries, each recomputing its tiles from the saved
 * log-sum-exp; the first leaves delta = <d_o, o> for the second. Seven products where one kernel would need five, but no order of blocks
 * to keep and no dq in float in memory.
 *
 * A block is one warpgroup and 64 rows; several share a multiprocessor, so that the
 * exponentials of one hide behind the products of others. Products with probabilities
 * take these from registers (dk and dv compute scores transposed, rows keys), and start
 * together with the next tile's scores.
 */
#include "attn_wgmma.cuh"

#ifndef DQ64
#define DQ64 3, 3
#endif
#ifndef DKV64
#define DKV64 3, 3
#endif
#ifndef DQ128
#define DQ128 2, 2
#endif
#ifndef DKV128
#define DKV128 2, 2
#endif

/* ---- dq ------------------------------------------------------------------- */

template <int D, int STAGES> struct dq_smem {
	bf16 q[TILE * D], d_o[TILE * D];
	bf16 k[STAGES][TILE * D], v[STAGES][TILE * D];
	uint64_t x_full, full[STAGES];
};

template <int D, int STAGES>
static __device__ __forceinline__ void dq_fetch(struct dq_smem<D, STAGES> *m,
						const struct attn_maps &maps, int tile, int kh,
						int i)
{
	int stage = tile % STAGES;

	mbar_expect(&m->full[stage], 4 * D * TILE);
	tile_fetch<D>(m->k[stage], &maps.k, &m->full[stage], tile * TILE, kh, i);
	tile_fetch<D>(m->v[stage], &maps.v, &m->full[stage], tile * TILE, kh, i);
}

/* Scores and dP of a tile, asynchronous. */
template <int D>
static __device__ __forceinline__ void bwd_scores(tile_acc &s, tile_acc &dp, const bf16 *q,
						  const bf16 *k, const bf16 *d_o, const bf16 *v)
{
	tile_nt<D>(s, q, k);
	tile_nt<D>(dp, d_o, v);
}

/*
 * Statistics of row @r, the query at @pos. delta = <d_o, o> and dgamma are made here, by
 * the four lanes that hold the row, while the first tiles are on their way.
 */
template <int D>
static __device__ __forceinline__ void dq_stats(struct row_stats &rows, int r,
						const struct attn_run &p, int i, int pos, int h)
{
	const struct attn &a = p.a;
	long at = attn_stat(a, i, pos, h), from = attn_o(a, i, h) + pos * a.o_row;
	bool inside = pos < a.t;
	float sum = 0;

#pragma unroll
	for (int e = threadIdx.x % 4 * 8; e < D; e += 32) {
		uint4 x = {}, y = {};
		const bf16 *xs = (const bf16 *)&x, *ys = (const bf16 *)&y;

		if (inside) {
			x = *(const uint4 *)(bf16_of(a.o) + from + e);
			y = *(const uint4 *)(p.d_o + from + e);
		}
#pragma unroll
		for (int j = 0; j < 8; j++)
			sum += __bfloat162float(xs[j]) * __bfloat162float(ys[j]);
	}
	rows.lse[r] = inside ? a.lse[at] * LOG2E : INFINITY;
	rows.gamma[r] = inside && a.gamma ? a.gamma[at] : 1;
	rows.delta[r] = row_sum(sum);
	if (!inside || threadIdx.x % 4)
		return;
	p.delta[at] = rows.delta[r];
	if (a.gamma && p.dgamma)
		p.dgamma[at] = rows.gamma[r] == 0 ? 0 : rows.delta[r] / rows.gamma[r];
}

/* A warpgroup's sums, and its rows' statistics. */
template <int D> struct dq_acc {
	tile_acc s, dp, dq[D / BLOCK_COLS];
	struct row_stats rows;
};

/* Tile @n: dq += ds k together with scores and dP of tile @n + 1. @LAST: on the diagonal. */
template <int D, int STAGES, bool LAST>
static __device__ __forceinline__ void dq_tile(struct dq_acc<D> &w, struct dq_smem<D, STAGES> *m,
					       int n, float scale)
{
	int stage = n % STAGES, next = (n + 1) % STAGES;
	tile_left ds;

	tile_ds(ds, w.s, w.dp, w.rows, scale, LAST);
	if (!LAST)
		mbar_wait(&m->full[next], (n + 1) / STAGES % 2);
	wgmma_fence();
	tile_nn<D>(w.dq, ds, m->k[stage]);
	if (!LAST)
		bwd_scores<D>(w.s, w.dp, m->q, m->k[next], m->d_o, m->v[next]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
	acc_pin(w.dp);
#pragma unroll
	for (int c = 0; c < D / BLOCK_COLS; c++)
		acc_pin(w.dq[c]);
}

template <int D, int STAGES, int BLOCKS>
static __global__ void __launch_bounds__(WG_THREADS, BLOCKS)
wgmma_dq_kernel(const __grid_constant__ struct attn_run p,
		const __grid_constant__ struct attn_maps maps)
{
#if WGMMA_BODY
	extern __shared__ __align__(1024) char mem[];
	auto *m = (struct dq_smem<D, STAGES> *)mem;
	const struct attn &a = p.a;
	int blocks = div_up(a.t, TILE), rank;
	int pair = attn_schedule(blockIdx.x, blocks, a.b * a.heads, &rank);
	int i = pair / a.heads, h = pair % a.heads, kh = a.k_head ? h / a.group : 0;
	int last = blocks - 1 - rank;
	float scale = p.scale * LOG2E;
	struct dq_acc<D> w = {};

	if (!threadIdx.x) {
		mbar_init(&m->x_full, 1);
		for (int n = 0; n < STAGES; n++)
			mbar_init(&m->full[n], 1);
		mbar_init_fence();
		mbar_expect(&m->x_full, 4 * D * TILE);
		tile_fetch<D>(m->q, &maps.q, &m->x_full, last * TILE, h, i);
		tile_fetch<D>(m->d_o, &maps.d_o, &m->x_full, last * TILE, h, i);
		for (int n = 0; n <= min(STAGES - 1, last); n++)
			dq_fetch<D, STAGES>(m, maps, n, kh, i);
	}
#pragma unroll
	for (int r = 0; r < 2; r++)
		dq_stats<D>(w.rows, r, p, i, last * TILE + acc_row(2 * r), h);
	__syncthreads();
	mbar_wait(&m->x_full, 0);
	mbar_wait(&m->full[0], 0);
	wgmma_fence();
	bwd_scores<D>(w.s, w.dp, m->q, m->k[0], m->d_o, m->v[0]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
	acc_pin(w.dp);
	for (int n = 0; n < last; n++) {
		dq_tile<D, STAGES, false>(w, m, n, scale);
		__syncthreads();
		if (!threadIdx.x && n + STAGES <= last)
			dq_fetch<D, STAGES>(m, maps, n + STAGES, kh, i);
	}
	dq_tile<D, STAGES, true>(w, m, last, scale);
	rows_store<D>(p.dq + attn_q(a, i, h), a.q_row, last * TILE, a.t, 0, D, w.dq[0], p.scale,
		      p.scale, true);
#endif
}

/* ---- dk, dv --------------------------------------------------------------- */

template <int D, int STAGES> struct dkv_smem {
	bf16 k[TILE * D], v[TILE * D];
	bf16 q[STAGES][TILE * D], d_o[STAGES][TILE * D];
	struct col_stats stats[STAGES];
	uint64_t x_full, full[STAGES];
};

/* Tiles of a block: queries of head h0, then of the next head that shares its keys. */
struct dkv_walk {
	int i, h0, first, each;		/* first tile of queries, tiles of a head */
};

/* One float to shared memory, 0 behind the end; counts on a barrier by stats_arrive(). */
static __device__ __forceinline__ void stats_copy(float *dst, const float *src, bool inside)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
		     :: "r"(smem_at(dst)), "l"(src), "r"(inside ? 4 : 0) : "memory");
}

static __device__ __forceinline__ void stats_arrive(uint64_t *bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(smem_at(bar))
		     : "memory");
}

/*
 * Tile @n to its stage, by all threads: one starts the copies of q and d_o, 64 bring
 * lse and gamma of a query each, 64 delta.
 */
template <int D, int STAGES, bool GAMMA>
static __device__ __forceinline__ void dkv_fetch(struct dkv_smem<D, STAGES> *m,
						 const struct attn_run &p,
						 const struct attn_maps &maps,
						 const struct dkv_walk &w, int n)
{
	int stage = n % STAGES, pos = (w.first + n % w.each) * TILE, h = w.h0 + n / w.each;
	int own = threadIdx.x % TILE;
	bool inside = pos + own < p.a.t;
	long at = attn_stat(p.a, w.i, inside ? pos + own : 0, h);

	if (!threadIdx.x) {
		mbar_expect(&m->full[stage], 4 * D * TILE);
		tile_fetch<D>(m->q[stage], &maps.q, &m->full[stage], pos, h, w.i);
		tile_fetch<D>(m->d_o[stage], &maps.d_o, &m->full[stage], pos, h, w.i);
	}
	if (threadIdx.x < TILE) {
		stats_copy(&m->stats[stage].lse[own], p.a.lse + at, inside);
		if (GAMMA)
			stats_copy(&m->stats[stage].gamma[own], p.a.gamma + at, inside);
	} else {
		stats_copy(&m->stats[stage].delta[own], p.delta + at, inside);
	}
	stats_arrive(&m->full[stage]);
}

/* A warpgroup's sums. */
template <int D> struct dkv_acc {
	tile_acc s, dp, dk[D / BLOCK_COLS], dv[D / BLOCK_COLS];
};

/*
 * Tile @n. dv += P d_o runs while ds is computed; dk += ds q runs together with the
 * scores and dP of tile @n + 1, unless @LAST. Packed ds takes the registers of packed P,
 * so that everything fits in a third of the multiprocessor's.
 */
template <int D, int STAGES, bool GAMMA, bool LAST>
static __device__ __forceinline__ void dkv_tile(struct dkv_acc<D> &w,
						struct dkv_smem<D, STAGES> *m, int n, float scale,
						bool diagonal)
{
	int stage = n % STAGES, next = (n + 1) % STAGES;
	const struct col_stats *stats = &m->stats[stage];
	tile_left left;

	tile_probs_t<GAMMA>(w.s, left, stats, scale, diagonal);
	wgmma_fence();
	tile_nn<D>(w.dv, left, m->d_o[stage]);
	wgmma_commit();
	tile_ds_t<GAMMA>(w.s, w.dp, stats);
	acc_pin(w.dp);
	wgmma_wait<0>();
	acc_pin(w.dp);
#pragma unroll
	for (int c = 0; c < D / BLOCK_COLS; c++)
		acc_pin(w.dv[c]);
	tile_pack(left, w.dp);
	if (!LAST)
		mbar_wait(&m->full[next], (n + 1) / STAGES % 2);
	wgmma_fence();
	tile_nn<D>(w.dk, left, m->q[stage]);
	if (!LAST)
		bwd_scores<D>(w.s, w.dp, m->k, m->q[next], m->v, m->d_o[next]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
	acc_pin(w.dp);
#pragma unroll
	for (int c = 0; c < D / BLOCK_COLS; c++)
		acc_pin(w.dk[c]);
}

template <int D, int STAGES, int BLOCKS, bool GAMMA>
static __global__ void __launch_bounds__(WG_THREADS, BLOCKS)
wgmma_dkv_kernel(const __grid_constant__ struct attn_run p,
		 const __grid_constant__ struct attn_maps maps)
{
#if WGMMA_BODY
	extern __shared__ __align__(1024) char mem[];
	auto *m = (struct dkv_smem<D, STAGES> *)mem;
	const struct attn &a = p.a;
	int blocks = div_up(a.t, TILE), shared = a.heads / p.q_per, x, last;
	int pair = attn_schedule(blockIdx.x, blocks, a.b * shared, &x);
	struct dkv_walk walk = { pair / shared, pair % shared * p.q_per, x, blocks - x };
	float scale = p.scale * LOG2E;
	struct dkv_acc<D> w = {};

	last = walk.each * p.q_per - 1;
	if (!threadIdx.x) {
		mbar_init(&m->x_full, 1);
		for (int n = 0; n < STAGES; n++)
			mbar_init(&m->full[n], 1 + WG_THREADS);
		mbar_init_fence();
		mbar_expect(&m->x_full, 4 * D * TILE);
		tile_fetch<D>(m->k, &maps.k, &m->x_full, x * TILE, pair % shared, walk.i);
		tile_fetch<D>(m->v, &maps.v, &m->x_full, x * TILE, pair % shared, walk.i);
	}
	__syncthreads();
	for (int n = 0; n <= min(STAGES - 1, last); n++)
		dkv_fetch<D, STAGES, GAMMA>(m, p, maps, walk, n);
	mbar_wait(&m->x_full, 0);
	mbar_wait(&m->full[0], 0);
	wgmma_fence();
	bwd_scores<D>(w.s, w.dp, m->k, m->q[0], m->v, m->d_o[0]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
	acc_pin(w.dp);
	for (int n = 0; n < last; n++) {
		dkv_tile<D, STAGES, GAMMA, false>(w, m, n, scale, n % walk.each == 0);
		__syncthreads();
		if (n + STAGES <= last)
			dkv_fetch<D, STAGES, GAMMA>(m, p, maps, walk, n + STAGES);
	}
	dkv_tile<D, STAGES, GAMMA, true>(w, m, last, scale, last % walk.each == 0);
	rows_store<D>(p.dk + attn_k(a, walk.i, walk.h0), a.k_row, x * TILE, a.t, 0, D, w.dk[0],
		      p.scale, p.scale, true);
	rows_store<D>(p.dv + attn_v(a, walk.i, walk.h0), a.v_row, x * TILE, a.t, 0, D, w.dv[0], 1,
		      1, true);
#endif
}

template <int D, int STAGES, int BLOCKS>
static void dq_launch(const struct attn_run &p, const struct attn_maps &maps)
{
	const struct attn &a = p.a;
	int bytes = sizeof(struct dq_smem<D, STAGES>);
	auto *kernel = wgmma_dq_kernel<D, STAGES, BLOCKS>;

	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
	kernel<<<div_up(a.t, TILE) * a.b * a.heads, WG_THREADS, bytes, cuda_stream()>>>
		(p, maps);
	CUDA_LAUNCHED();
}

template <int D, int STAGES, int BLOCKS, bool GAMMA>
static void dkv_launch(const struct attn_run &p, const struct attn_maps &maps)
{
	const struct attn &a = p.a;
	int bytes = sizeof(struct dkv_smem<D, STAGES>);
	auto *kernel = wgmma_dkv_kernel<D, STAGES, BLOCKS, GAMMA>;

	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
	kernel<<<div_up(a.t, TILE) * a.b * (a.heads / p.q_per), WG_THREADS, bytes,
		 cuda_stream()>>>(p, maps);
	CUDA_LAUNCHED();
}

void attn_wgmma_bwd(const struct attn_run &args)
{
	const struct attn_maps maps = attn_maps_of(args);
	struct attn_run p = args;
	bool gamma = p.a.gamma;

	p.q_per = p.a.heads / attn_k_heads(p.a);
	if (p.a.dk == 64) {
		dq_launch<64, DQ64>(p, maps);
		gamma ? dkv_launch<64, DKV64, true>(p, maps) : dkv_launch<64, DKV64, false>(p, maps);
	} else {
		dq_launch<128, DQ128>(p, maps);
		gamma ? dkv_launch<128, DKV128, true>(p, maps) : dkv_launch<128, DKV128, false>(p, maps);
	}
}
