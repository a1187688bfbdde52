// SPDX-License-Identifier: MIT
/*
 * Linear recurrences with one decay for all of a key backward, on mma.sync. A block goes
 * through a segment forwards with the state and makes gradients of queries, another
 * backwards with the gradient of the state and makes those of keys, values and decays.
 *
 * Two groups of four warps, of which each has 16 positions of a chunk: either has half the
 * columns of a query's gradient, or one makes those of keys and the other those of values.
 * Scores' gradients with decays and scale are rounded alike in both sweeps, so that what a
 * query and a key of one chunk have from each other is the same number in q dq and in k dk,
 * and does not stay behind in gradients of decays.
 */
#include "linattn_mma_scalar.cuh"

enum { THREADS = 2 * TILE_THREADS };

/* Shared memory of a block. s: the state or its gradient; own: halves of q dq, or q dq - k dk. */
template <int W> struct scalar_smem {
	bf16 q[2][TILE * W], k[2][TILE * W], v[2][TILE * VALUES], d_o[2][TILE * VALUES];
	bf16 s[W * VALUES];
	float own[2][TILE];
	struct mma_head head;
};

enum sweep { QUERIES, KEYS, ADD };	/* gradients of these; or what segments add to the state's */

/* A chunk that has been copied. */
struct chunk {
	const bf16 *q, *k, *v, *d_o;
	float2 b;			/* decays of two positions, as decays_sum() has them */
	int t;
};

template <int W, enum sweep MODE>
static __device__ __forceinline__ void load(scalar_smem<W> &m, const struct mma_run &p,
					    const struct place &x, int t, int to)
{
	const struct linattn &a = p.a;

	mma_load<W, TILE, THREADS>(m.q[to], m.head.q, a.q_row, t, x.t1, a.dk);
	if (MODE != ADD) {
		mma_load<W, TILE, THREADS>(m.k[to], m.head.k, a.k_row, t, x.t1, a.dk);
		mma_load<VALUES, TILE, THREADS>(m.v[to], m.head.v, a.v_row, t, x.t1, a.dv);
	}
	mma_load<VALUES, TILE, THREADS>(m.d_o[to], m.head.d_o, a.heads * a.dv, t, x.t1, a.dv);
	copy_commit();
}

/* <x, dx> of accumulators' rows acc_row(0) and acc_row(2): 8 N columns from @col on of W */
template <int W, int N>
static __device__ __forceinline__ float2 rows_dot(const bf16 *x, const float (*dx)[4], int col)
{
	int at = tile_at<W>(acc_row(0), col / 8) + acc_col(0, 0);
	float sum[2] = { 0, 0 };

#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 2; i++) {
			float2 v = pair_get(x + chunk_at(at, n) + 8 * i * W);

			sum[i] = fmaf(v.x, dx[n][2 * i], sum[i]);
			sum[i] = fmaf(v.y, dx[n][2 * i + 1], sum[i]);
		}
	return { row_sum(sum[0]), row_sum(sum[1]) };
}

/* What scores of D give, of the warp's rows and 8 N columns from @col on: dx += D y */
template <int W, int N>
static __device__ __forceinline__ void from_scores(float (&dx)[N][4], const tile_left &d,
						   const bf16 *y, int col)
{
#pragma unroll
	for (int k = 0; k < TILE / 16; k++)
		mma_nn<W, N>(dx, d[k], y, k, col);
}

/* Scores' gradients of the warp's rows of @x, times decays and scale. @T: rows are keys. */
template <bool T>
static __device__ __forceinline__ void score_grads(tile_left &d, const bf16 *x, const bf16 *y,
						   float2 b, float scale)
{
	int row = acc_row(0) / 16 * 16;
	tile_acc c = {};

#pragma unroll
	for (int k = 0; k < VALUES / 16; k++) {
		uint32_t left[4];

		mma_left<VALUES>(left, x, row, k);
		mma_nt<VALUES, TILE_N>(c, left, y, 0, k);
	}
	scores<T>(d, c, b, decays_of_rows(b), scale);
}

/* dx = rows of @x times the state, of which 8 N rows from @col on, by factors of rows */
template <int N>
static __device__ __forceinline__ void from_state(float (&dx)[N][4], const bf16 *x, const bf16 *s,
						  int col, float2 f)
{
	int row = acc_row(0) / 16 * 16;

#pragma unroll
	for (int k = 0; k < VALUES / 16; k++) {
		uint32_t left[4];

		mma_left<VALUES>(left, x, row, k);
		mma_nt<VALUES, N>(dx, left, s, col, k);
	}
	mma_rows_scale<N>(dx, f.x, f.y);
}

/* Gradients of a chunk's queries, half the columns for each group; <q, dq> of these to m.own. */
template <int W>
static __device__ __forceinline__ void queries(scalar_smem<W> &m, const struct mma_run &p,
					       const struct place &x, const struct chunk &c)
{
	int group = threadIdx.x / TILE_THREADS, col = group * (W / 2);
	float2 rows = decays_of_rows(c.b), own;
	float dq[W / 16][4] = {}, scale = p.a.scale;
	tile_left d;

	score_grads<false>(d, c.d_o, c.v, c.b, scale);
	from_state<W / 16>(dq, c.d_o, m.s, col,
			   { scale * exp2_fast(rows.x), scale * exp2_fast(rows.y) });
	from_scores<W, W / 16>(dq, d, c.k, col);
	own = rows_dot<W, W / 16>(c.q, dq, col);
	mma_rows_put<W / 16>(m.head.dq, c.t + acc_row(0) / 16 * 16, x.t1, col, dq);
	if (threadIdx.x % 4 == 0) {
		m.own[group][acc_row(0)] = own.x;
		m.own[group][acc_row(2)] = own.y;
	}
}

/* Gradients of a chunk's values, by the second group. */
template <int W>
static __device__ __forceinline__ void values(const scalar_smem<W> &m, const struct mma_run &p,
					      const struct place &x, const struct chunk &c,
					      float2 ends)
{
	int row = acc_row(0) / 16 * 16;
	float dv[VALUES / 8][4] = {};
	tile_acc a = {};
	tile_left left;

#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t key[4];

		mma_left<W>(key, c.k, row, k);
		mma_nt<W, TILE_N>(a, key, c.q, 0, k);
	}
	scores<true>(left, a, c.b, decays_of_rows(c.b), p.a.scale);
#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t key[4];

		mma_left<W>(key, c.k, row, k);
		mma_nn<VALUES, VALUES / 8>(dv, key, m.s, k, 0);
	}
	mma_rows_scale<VALUES / 8>(dv, ends.x, ends.y);
	from_scores<VALUES, VALUES / 8>(dv, left, c.d_o, 0);
	mma_rows_put<VALUES / 8>(m.head.dv, c.t + row, x.t1, 0, dv);
}

/* Gradients of a chunk's keys, by the first group; <q, dq> - <k, dk> to m.own. */
template <int W>
static __device__ __forceinline__ void keys(scalar_smem<W> &m, const struct mma_run &p,
					    const struct place &x, const struct chunk &c,
					    float2 ends)
{
	int row = acc_row(0) / 16 * 16, last = x.t1 - 1 - c.t;
	float2 own = { 0, 0 };
	tile_left d;

	if (p.dg && threadIdx.x % 4 == 0) {
		own.x = acc_row(0) <= last ? m.head.dg[(c.t + acc_row(0)) * p.dg_row] : 0;
		own.y = acc_row(2) <= last ? m.head.dg[(c.t + acc_row(2)) * p.dg_row] : 0;
	}
	score_grads<true>(d, c.v, c.d_o, c.b, p.a.scale);
#pragma unroll 1
	for (int col = 0; col < W; col += 64) {	/* no more at once, for registers */
		float dk[8][4] = {};
		float2 dot;

		from_state<8>(dk, c.v, m.s, col, ends);
		from_scores<W, 8>(dk, d, c.q, col);
		dot = rows_dot<W, 8>(c.k, dk, col);
		own.x -= dot.x;
		own.y -= dot.y;
		mma_rows_put<8>(m.head.dk, c.t + row, x.t1, col, dk);
	}
	if (threadIdx.x % 4 == 0) {
		m.own[0][acc_row(0)] = acc_row(0) <= last ? own.x : 0;
		m.own[0][acc_row(2)] = acc_row(2) <= last ? own.y : 0;
	}
}

/* Gradients of a chunk's decays, by one warp; @behind: what lies behind it. */
template <int W>
static __device__ __forceinline__ void decays(const scalar_smem<W> &m, const struct mma_run &p,
					      const struct place &x, int t, float &behind)
{
	float lo = m.own[0][2 * threadIdx.x], hi = m.own[0][2 * threadIdx.x + 1], all = lo + hi;
	int at = t + 2 * threadIdx.x;

#pragma unroll
	for (int step = 1; step < 32; step *= 2) {
		float next = __shfl_down_sync(~0u, all, step);

		all += threadIdx.x + step < 32 ? next : 0;
	}
	all += behind;
	if (at < x.t1)
		m.head.dg[at * p.dg_row] = all;
	if (at + 1 < x.t1)
		m.head.dg[(at + 1) * p.dg_row] = all - lo;
	behind = __shfl_sync(~0u, all, 0);
}

/* What gradients of decays need of a chunk, when all of m.own is there. */
template <int W, enum sweep MODE>
static __device__ __forceinline__ void own_put(const scalar_smem<W> &m, const struct mma_run &p,
					       const struct place &x, int t, float &behind)
{
	if (MODE == ADD || !p.dg)
		return;
	if (MODE == KEYS && threadIdx.x < 32)
		decays<W>(m, p, x, t, behind);
	t += threadIdx.x;
	if (MODE == QUERIES && threadIdx.x < TILE && t < x.t1)
		m.head.dg[t * p.dg_row] = m.own[0][threadIdx.x] + m.own[1][threadIdx.x];
}

/* <state, gradient> behind a segment, to one thread. */
template <int N>
static __device__ __forceinline__ float behind_of(const float (&s)[N][4], const float *ds, int row,
						  int col, int dk, int dv)
{
	__shared__ float part[32];
	float sum = 0, d[N][4];

	mma_state_get<N>(d, ds, row, col, dk, dv);
#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int e = 0; e < 4; e++)
			sum = fmaf(s[n][e], d[n][e], sum);
	return block_sum(sum, part);
}

template <int W, enum sweep MODE>
static __global__ void __launch_bounds__(THREADS, 2) scalar_bwd_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	scalar_smem<W> &m = *(scalar_smem<W> *)mem;
	constexpr bool BACK = MODE != QUERIES;
	constexpr int N = W / 16;		/* of a warp's 16 rows of the state */
	const struct linattn &a = p.a;
	const struct place x = place_of(p, MODE == ADD);
	int row = threadIdx.x / 32 % (W / 16) * 16, col = threadIdx.x / 32 / (W / 16) * 8 * N;
	int chunks = div_up(x.t1 - x.t0, TILE);
	float s[1][N][4], behind = 0;
	float2 next;

	let_next();
	mma_head_of(m.head, p, x.i, x.h);
	after_previous();
	load<W, MODE>(m, p, x, x.t0 + (BACK ? chunks - 1 : 0) * TILE, 0);
	next = decays_get(m.head, a.g_row, x.t0 + (BACK ? chunks - 1 : 0) * TILE, x.t1);
	mma_state_get<N>(s[0], BACK ? mma_last_grad(p, x.at, x.n, MODE == ADD) :
				      mma_first(p, x.at, x.n, false), row, col, a.dk, a.dv);
	if (MODE == KEYS && p.dg)
		behind = *mma_behind(p, x.at, x.n, 1);
	for (int n = 0; n < chunks; n++) {
		int t = x.t0 + (BACK ? chunks - 1 - n : n) * TILE;
		int after = BACK ? t - TILE : t + TILE;
		const struct chunk c = { m.q[n % 2], m.k[n % 2], m.v[n % 2], m.d_o[n % 2],
					 decays_sum(next), t };

		if (MODE != ADD)
			mma_state_round<VALUES, N>(m.s, s[0], row, col);
		copy_wait<0>();
		__syncthreads();	/* chunk and state are there */
		if (n + 1 < chunks) {
			load<W, MODE>(m, p, x, after, (n + 1) % 2);
			next = decays_get(m.head, a.g_row, after, x.t1);
		}
		if (MODE == QUERIES)
			queries<W>(m, p, x, c);
		if (MODE == KEYS) {
			float2 rows = decays_of_rows(c.b);
			float end = __shfl_sync(~0u, c.b.y, 31);

			rows = { exp2_fast(end - rows.x), exp2_fast(end - rows.y) };
			if (threadIdx.x < TILE_THREADS)
				keys<W>(m, p, x, c, rows);
			else
				values<W>(m, p, x, c, rows);
		}
		take_in<W, BACK>(s, BACK ? c.q : c.k, BACK ? c.d_o : c.v, row, col, c.b,
				 BACK ? a.scale : 1);
		__syncthreads();	/* no one reads them any more; m.own is there */
		own_put<W, MODE>(m, p, x, t, behind);
	}
	if (MODE == QUERIES && p.dg) {
		float sum = behind_of<N>(s[0], mma_last_grad(p, x.at, x.n, false), row, col, a.dk,
					 a.dv);

		if (!threadIdx.x)
			*mma_behind(p, x.at, x.n, 1) = sum;
	}
	if (MODE == ADD || (MODE == KEYS && !x.n))
		mma_state_put<N>(mma_first_grad(p, x.at, x.n), s[0], row, col, a.dk, a.dv);
}

template <int W, enum sweep MODE> static void scalar_launch(const struct mma_run &p)
{
	dim3 grid(MODE == ADD ? p.segs - 1 : p.segs, p.a.b * p.a.heads);
	size_t bytes = sizeof(scalar_smem<W>);

	shared_room(scalar_bwd_kernel<W, MODE>, bytes);
	launch(scalar_bwd_kernel<W, MODE>, grid, THREADS, bytes, p);
}

template <int W> static void scalar_bwd(const struct mma_run &p)
{
	mma_scalar_states(p);
	if (p.segs > 1) {
		scalar_launch<W, ADD>(p);
		mma_scan(p, true);
	}
	scalar_launch<W, QUERIES>(p);
	scalar_launch<W, KEYS>(p);
}

void mma_scalar_bwd(const struct mma_run &p)
{
	if (p.a.dk <= 64)
		scalar_bwd<64>(p);
	else
		scalar_bwd<128>(p);
}

size_t mma_scalar_bwd_room(const struct linattn &a)
{
	return a.dk <= 64 ? sizeof(scalar_smem<64>) : sizeof(scalar_smem<128>);
}
