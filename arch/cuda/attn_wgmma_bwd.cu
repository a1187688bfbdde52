// SPDX-License-Identifier: MIT
/*
 * Attention backward on wgmma (sm_90a), as two kernels without atomics: dq runs over
 * keys, dk and dv run over queries, each recomputing its tiles from the saved
 * log-sum-exp; the first leaves delta = <d_o, o> for the second. Seven products where
 * one kernel would need five, but no order of blocks to keep and no dq in float in
 * memory.
 *
 * A block is one warpgroup and 64 rows; several share a multiprocessor, so that the
 * exponentials of one hide behind the products of others. Products with probabilities
 * take these from registers (dk and dv compute scores transposed, rows keys), and the
 * next tile's scores start right behind them.
 */
#include "attn_wgmma.cuh"

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

/* A thread's share of o and d_o of its two rows: the four lanes of a row share it. */
template <int D> struct dq_rows {
	uint4 o[2][D / 32], d_o[2][D / 32];
};

template <int D>
static __device__ __forceinline__ void dq_rows_get(struct dq_rows<D> &x,
						   const struct attn_run &p, int i, int x0, int h)
{
	const struct attn &a = p.a;

#pragma unroll
	for (int r = 0; r < 2; r++) {
		/* behind the end: any row, dropped later */
		long from = attn_o(a, i, h) + min(x0 + acc_row(2 * r), a.t - 1) * a.o_row;

#pragma unroll
		for (int n = 0; n < D / 32; n++) {
			int e = 32 * n + threadIdx.x % 4 * 8;

			x.o[r][n] = *(const uint4 *)(bf16_of(a.o) + from + e);
			x.d_o[r][n] = *(const uint4 *)(p.d_o + from + e);
		}
	}
}

/* <x, y> of eight elements */
[[maybe_unused]]
static __device__ __forceinline__ float dot8(const uint4 &x, const uint4 &y)
{
	const bf16 *xs = (const bf16 *)&x, *ys = (const bf16 *)&y;
	float sum = 0;

#pragma unroll
	for (int n = 0; n < 8; n++)
		sum += __bfloat162float(xs[n]) * __bfloat162float(ys[n]);
	return sum;
}

/* Statistics of both rows; makes delta = <d_o, o> and dgamma. */
template <int D>
static __device__ __forceinline__ void dq_stats(struct row_stats &rows,
						const struct dq_rows<D> &x,
						const struct attn_run &p, int i, int x0, int h)
{
	const struct attn &a = p.a;

#pragma unroll
	for (int r = 0; r < 2; r++) {
		int pos = x0 + acc_row(2 * r);
		long at = attn_stat(a, i, pos, h);
		bool inside = pos < a.t;
		float sum = 0;

#pragma unroll
		for (int n = 0; n < D / 32; n++)
			sum += dot8(x.o[r][n], x.d_o[r][n]);
		rows.lse[r] = inside ? a.lse[at] * LOG2E : INFINITY;
		rows.gamma[r] = inside && a.gamma ? a.gamma[at] : 1;
		rows.delta[r] = row_sum(sum);
		if (!inside || threadIdx.x % 4)
			continue;
		p.delta[at] = rows.delta[r];
		if (a.gamma && p.dgamma)
			p.dgamma[at] = rows.gamma[r] == 0 ? 0 : rows.delta[r] / rows.gamma[r];
	}
}

/* A warpgroup's sums, and its rows' statistics. */
template <int D> struct dq_acc {
	tile_acc s, dp, dq[D / BLOCK_COLS];
	struct row_stats rows;
};

/*
 * Tile @n: dq += ds k, and the scores and dP of tile @n + 1. dP waits until ds has been
 * read: registers. @LAST: on the diagonal, none follows.
 */
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
	wgmma_commit();
	if (!LAST) {
		tile_nt<D>(w.s, m->q, m->k[next]);
		wgmma_commit();
		wgmma_wait<1>();
		wgmma_fence();
		tile_nt<D>(w.dp, m->d_o, m->v[next]);
		wgmma_commit();
	}
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
	int i = attn_sequence(p), h = blockIdx.x, kh = a.k_head ? attn_kv_head(a, h) : 0;
	int last = div_up(a.t, TILE) - 1 - attn_rank(p);
	float scale = p.scale * LOG2E;
	struct dq_acc<D> w = {};
	struct dq_rows<D> x;

	if (i >= a.b)
		return;
	dq_rows_get<D>(x, p, i, last * TILE, h);
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
	__syncthreads();
	dq_stats<D>(w.rows, x, p, i, last * TILE, h);
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
[[maybe_unused]]
static __device__ __forceinline__ void stats_copy(float *dst, const float *src, bool inside)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
		     :: "r"(smem_at(dst)), "l"(src), "r"(inside ? 4 : 0) : "memory");
}

[[maybe_unused]]
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
 * Tile @n: dv += P d_o and dk += ds q, and the scores and dP of tile @n + 1 unless @LAST.
 * dP waits until the left operands have been read, so that what is alive fits in a third
 * of the multiprocessor's registers.
 */
template <int D, int STAGES, bool GAMMA, bool LAST>
static __device__ __forceinline__ void dkv_tile(struct dkv_acc<D> &w,
						struct dkv_smem<D, STAGES> *m, int n, float scale,
						bool diagonal)
{
	int stage = n % STAGES, next = (n + 1) % STAGES;
	tile_left prob, ds;

	if (diagonal)
		tile_bwd_t<GAMMA, true>(prob, ds, w.s, w.dp, &m->stats[stage], scale);
	else
		tile_bwd_t<GAMMA, false>(prob, ds, w.s, w.dp, &m->stats[stage], scale);
	if (!LAST)
		mbar_wait(&m->full[next], (n + 1) / STAGES % 2);
	wgmma_fence();
	tile_nn<D>(w.dv, prob, m->d_o[stage]);
	tile_nn<D>(w.dk, ds, m->q[stage]);
	wgmma_commit();
	if (!LAST) {
		tile_nt<D>(w.s, m->k, m->q[next]);
		wgmma_commit();
		wgmma_wait<1>();
		wgmma_fence();
		tile_nt<D>(w.dp, m->v, m->d_o[next]);
		wgmma_commit();
	}
	wgmma_wait<0>();
	acc_pin(w.s);
	acc_pin(w.dp);
#pragma unroll
	for (int c = 0; c < D / BLOCK_COLS; c++) {
		acc_pin(w.dk[c]);
		acc_pin(w.dv[c]);
	}
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
	int x = attn_rank(p), each = div_up(a.t, TILE) - x, last = each * p.q_per - 1;
	const struct dkv_walk walk = { attn_sequence(p), (int)blockIdx.x * p.q_per, x, each };
	float scale = p.scale * LOG2E;
	struct dkv_acc<D> w = {};

	if (walk.i >= a.b)
		return;
	if (!threadIdx.x) {
		mbar_init(&m->x_full, 1);
		for (int n = 0; n < STAGES; n++)
			mbar_init(&m->full[n], 1 + WG_THREADS);
		mbar_init_fence();
		mbar_expect(&m->x_full, 4 * D * TILE);
		tile_fetch<D>(m->k, &maps.k, &m->x_full, x * TILE, blockIdx.x, walk.i);
		tile_fetch<D>(m->v, &maps.v, &m->x_full, x * TILE, blockIdx.x, walk.i);
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
static void dq_launch(struct attn_run p, const struct attn_maps &maps)
{
	const dim3 grid = attn_grid(&p, div_up(p.a.t, TILE), p.a.heads);
	int bytes = sizeof(struct dq_smem<D, STAGES>);
	auto *kernel = wgmma_dq_kernel<D, STAGES, BLOCKS>;

	shared_room(kernel, bytes);
	kernel<<<grid, WG_THREADS, bytes, cuda_stream()>>>(p, maps);
	CUDA_LAUNCHED();
}

template <int D, int STAGES, int BLOCKS, bool GAMMA>
static void dkv_launch(struct attn_run p, const struct attn_maps &maps)
{
	const dim3 grid = attn_grid(&p, div_up(p.a.t, TILE), p.a.heads / p.q_per);
	int bytes = sizeof(struct dkv_smem<D, STAGES>);
	auto *kernel = wgmma_dkv_kernel<D, STAGES, BLOCKS, GAMMA>;

	shared_room(kernel, bytes);
	kernel<<<grid, WG_THREADS, bytes, cuda_stream()>>>(p, maps);
	CUDA_LAUNCHED();
}

/* Stages and blocks of a multiprocessor: as measured on an H200. */
void attn_wgmma_bwd(const struct attn_run &args)
{
	const struct attn_maps maps = attn_maps_of(args);
	struct attn_run p = args;
	bool gamma = p.a.gamma;

	p.q_per = p.a.heads / attn_k_heads(p.a);
	if (p.a.dk == 64) {
		dq_launch<64, 2, 3>(p, maps);
		gamma ? dkv_launch<64, 3, 3, true>(p, maps) : dkv_launch<64, 3, 3, false>(p, maps);
	} else {
		dq_launch<128, 2, 2>(p, maps);
		gamma ? dkv_launch<128, 2, 2, true>(p, maps) : dkv_launch<128, 2, 2, false>(p, maps);
	}
}
