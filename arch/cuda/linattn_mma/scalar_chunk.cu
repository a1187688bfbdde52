// SPDX-License-Identifier: MIT
/*
 * Gradients of one chunk where there is one decay for all of a key, on mma.sync: of queries,
 * keys, values and decays at once, from the state before the chunk and the gradient of the one
 * behind it. Chunks are independent.
 *
 * Two groups of four warps. In a product each warp has 16 positions, each group half of the
 * columns. Scores and their gradients are made once, rounded with decays and scale, for both: so
 * what a query and a key of the chunk have from each other is the same number in q dq and in
 * k dk, and does not stay behind in gradients of decays.
 */
#include "rest.cuh"
#include "scalar.cuh"

enum { WARPS = THREADS / 32 };

/*
 * Shared memory of a block. s: the state before the chunk; ds: the gradient of that behind it;
 * a: scores, rows are keys; da: their gradients, rows are queries; own: halves of q dq - k dk;
 * behind: a warp's part of <state behind, ds>.
 */
template <int W> struct chunk_smem {
	bf16 q[TILE * W], k[TILE * W], v[TILE * VALUES], d_o[TILE * VALUES];
	bf16 s[W * VALUES], ds[W * VALUES], a[TILE * TILE], da[TILE * TILE];
	float own[2][TILE], behind[WARPS];
};

/* Where a block and a warp of it stand: positions @t on, 16 rows from @row, half @group. */
struct chunk {
	int at, t, end, row, group;
	float2 b;		/* decays of two positions, as decays_sum() has them */
};

template <int W>
static __device__ __forceinline__ void load(chunk_smem<W> &m, const struct mma_run &p,
					    const struct mma_head &x, const struct chunk &c)
{
	const struct linattn &a = p.a;
	bool first = !c.t && !a.s0, last = c.t + TILE >= a.t && !p.ds1;

	mma_load<W, TILE, THREADS>(m.q, x.q, a.q_row, c.t, c.end, a.dk);
	mma_load<W, TILE, THREADS>(m.k, x.k, a.k_row, c.t, c.end, a.dk);
	mma_load<VALUES, TILE, THREADS>(m.v, x.v, a.v_row, c.t, c.end, a.dv);
	mma_load<VALUES, TILE, THREADS>(m.d_o, x.d_o, a.heads * a.dv, c.t, c.end, a.dv);
	copy_commit();
	mma_load<VALUES, W, THREADS>(m.s, mma_kept(p, false, c.at, c.t / TILE), a.dv, 0,
				     first ? 0 : a.dk, a.dv);
	mma_load<VALUES, W, THREADS>(m.ds, mma_kept(p, true, c.at, c.t / TILE), a.dv, 0,
				     last ? 0 : a.dk, a.dv);
	copy_commit();
}

/* What sweeps left out of a state: a thread has of it what it has from mma_load(). */
template <int W> struct rest {
	uint4 x[W * VALUES / 8 / THREADS];
	float decay;
};

template <int W, bool BACK>
static __device__ __forceinline__ void rest_get(struct rest<W> &x, const struct mma_run &p, int at,
						int n)
{
	int from = mma_rest_from(p, BACK, n);

	x.decay = from < 0 ? 0 : *mma_kept_decay(p, BACK, at, BACK ? n + 1 : n - 1);
	if (!x.decay)
		return;
#pragma unroll
	for (int i = 0; i < W * VALUES / 8 / THREADS; i++) {
		int r = (threadIdx.x + i * THREADS) / (VALUES / 8), c = threadIdx.x % (VALUES / 8);

		x.x[i] = {};
		if (r < p.a.dk && 8 * c < p.a.dv)
			x.x[i] = *(const uint4 *)(mma_kept(p, BACK, at, from) + r * p.a.dv + 8 * c);
	}
}

template <int W>
static __device__ __forceinline__ void rest_add(bf16 *s, const struct rest<W> &x)
{
	if (!x.decay)
		return;
	s += tile_at<VALUES>(threadIdx.x / (VALUES / 8), threadIdx.x % (VALUES / 8));
#pragma unroll
	for (int i = 0; i < W * VALUES / 8 / THREADS; i++)
		mma_rest_add(s + i * 8 * THREADS, x.x[i], x.decay);
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

/* Is there anything in 16 columns @j of the warp's rows of scores? @T: rows are keys. */
template <bool T> static __device__ __forceinline__ bool unmasked(const struct chunk &c, int j)
{
	return T ? 16 * j >= c.row : 16 * j <= c.row;
}

/* Scores, rows of @x by rows of @y, with decays and scale, to a tile. */
template <int W, bool T>
static __device__ __forceinline__ void scores_put(bf16 *to, const bf16 *x, const bf16 *y,
						  const struct chunk &c, float scale)
{
	float2 rows = decays_of_rows(c.b);
	int at = tile_at<TILE>(acc_row(0), 0) + acc_col(0, 0);
	tile_acc acc = {};

#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t left[4];

		mma_left<W>(left, x, c.row, k);
#pragma unroll
		for (int j = 0; j < TILE / 16; j++)
			if (unmasked<T>(c, j))
				mma_nt<W, 2>(acc + 2 * j, left, y, 16 * j, k);
	}
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
		if (!unmasked<T>(c, n / 2))
			continue;
		decays_scale<T>(acc[n], n, c.b, rows, scale);
		pair_put(to + chunk_at(at, n), { acc[n][0], acc[n][1] });
		pair_put(to + chunk_at(at, n) + 8 * TILE, { acc[n][2], acc[n][3] });
	}
}

/*
 * dx += what scores give, of the warp's rows and 8 N columns from @col on. @T: keys are its rows;
 * @TURN: those of the scores are queries all the same.
 */
template <int W, int N, bool T, bool TURN>
static __device__ __forceinline__ void from_scores(float (&dx)[N][4], const bf16 *scores,
						   const bf16 *y, const struct chunk &c, int col)
{
#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		uint32_t left[4];

		if (!unmasked<T>(c, k))
			continue;
		if (TURN)
			mma_left_t<TILE>(left, scores, c.row, k);
		else
			mma_left<TILE>(left, scores, c.row, k);
		mma_nn<W, N>(dx, left, y, k, col);
	}
}

/* dx = rows of @x times the state, of which 8 N rows from @col on, by factors of rows */
template <int N>
static __device__ __forceinline__ void from_state(float (&dx)[N][4], const bf16 *x, const bf16 *s,
						  const struct chunk &c, int col, float2 f)
{
#pragma unroll
	for (int k = 0; k < VALUES / 16; k++) {
		uint32_t left[4];

		mma_left<VALUES>(left, x, c.row, k);
		mma_nt<VALUES, N>(dx, left, s, col, k);
	}
	mma_rows_scale<N>(dx, f.x, f.y);
}

/*
 * Gradients of queries, <q, dq> of this group's columns; or of KEYS, <k, dk>. @f: what decays make
 * of what the rows have from the state, or from its gradient.
 */
template <int W, bool KEYS>
static __device__ __forceinline__ float2 left(const chunk_smem<W> &m, const struct mma_head &x,
					      const struct chunk &c, float2 f)
{
	int col = c.group * (W / 2);
	float dx[W / 16][4] = {};

	from_state<W / 16>(dx, KEYS ? m.v : m.d_o, KEYS ? m.ds : m.s, c, col, f);
	from_scores<W, W / 16, KEYS, KEYS>(dx, m.da, KEYS ? m.q : m.k, c, col);
	mma_rows_put<W / 16>(KEYS ? x.dk : x.dq, c.t + c.row, c.end, col, dx);
	return rows_dot<W, W / 16>(KEYS ? m.k : m.q, dx, col);
}

/* Gradients of values; <v, dv> of what comes from behind the chunk: <k, dk> of the same. */
template <int W>
static __device__ __forceinline__ float2 values(const chunk_smem<W> &m, const struct mma_head &x,
						const struct chunk &c, float2 ends)
{
	enum { N = VALUES / 16 };
	int col = c.group * (VALUES / 2);
	float dv[N][4] = {};
	float2 own;

#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t key[4];

		mma_left<W>(key, m.k, c.row, k);
		mma_nn<VALUES, N>(dv, key, m.ds, k, col);
	}
	mma_rows_scale<N>(dv, ends.x, ends.y);
	own = rows_dot<VALUES, N>(m.v, dv, col);
	from_scores<VALUES, N, true, false>(dv, m.a, m.d_o, c, col);
	mma_rows_put<N>(x.dv, c.t + c.row, c.end, col, dv);
	return own;
}

/* This thread's part of <s, ds>. */
template <int W> static __device__ __forceinline__ float states_dot(const chunk_smem<W> &m)
{
	float sum = 0;

	mma_each<W * VALUES / 8, THREADS>([&](unsigned int n) {
		const uint4 x4 = *(const uint4 *)(m.s + 8 * n), y4 = *(const uint4 *)(m.ds + 8 * n);

#pragma unroll
		for (int e = 0; e < 4; e++) {
			float2 x = pair_get((const bf16 *)(&x4.x + e));
			float2 y = pair_get((const bf16 *)(&y4.x + e));

			sum = fmaf(x.x, y.x, sum);
			sum = fmaf(x.y, y.y, sum);
		}
	});
	return sum;
}

/*
 * Gradients of decays, by one warp: of q dq - k dk the sums to the chunk's end, and <state,
 * its gradient> there.
 */
template <int W>
static __device__ __forceinline__ void decays(const chunk_smem<W> &m, float *dg, long row,
					      const struct chunk &c)
{
	int at = 2 * threadIdx.x;
	float lo = m.own[0][at] + m.own[1][at], hi = m.own[0][at + 1] + m.own[1][at + 1];
	float all = lo + hi;

#pragma unroll
	for (int step = 1; step < 32; step *= 2) {
		float next = __shfl_down_sync(~0u, all, step);

		all += threadIdx.x + step < 32 ? next : 0;
	}
#pragma unroll
	for (int w = 0; w < WARPS; w++)
		all += m.behind[w];
	at += c.t;
	if (at < c.end)
		dg[at * row] = all;
	if (at + 1 < c.end)
		dg[(at + 1) * row] = all - lo;
}

template <int W>
static __global__ void __launch_bounds__(THREADS, 2) chunk_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	chunk_smem<W> &m = *(chunk_smem<W> *)mem;
	const struct linattn &a = p.a;
	const struct mma_head x = mma_head_at(p, blockIdx.z, blockIdx.y);
	int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), t = blockIdx.x * TILE;
	struct chunk c = { (int)(blockIdx.z * a.heads + blockIdx.y), t, min(a.t, t + TILE),
			   warp % 4 * 16, warp / 4 };
	struct rest<W> rest, drest;
	float2 dq, dk, dv, rows, begin;
	float scale = a.scale, end, behind;

	let_next();
	after_previous();
	load<W>(m, p, x, c);
	c.b = decays_sum(decays_get(x, a.g_row, t, c.end));
	end = __shfl_sync(~0u, c.b.y, 31);
	rows = decays_of_rows(c.b);
	rows = { exp2_fast(end - rows.x), exp2_fast(end - rows.y) };
	rest_get<W, false>(rest, p, c.at, t / TILE);
	rest_get<W, true>(drest, p, c.at, t / TILE);
	copy_wait<1>();
	__syncthreads();	/* the chunk is there */
	if (c.group)
		scores_put<W, true>(m.a, m.k, m.q, c, a.scale);
	else
		scores_put<VALUES, false>(m.da, m.d_o, m.v, c, a.scale);
	copy_wait<0>();		/* for a thread what it asked for is there */
	rest_add<W>(m.s, rest);
	rest_add<W>(m.ds, drest);
	__syncthreads();	/* scores and states are there */
	begin = decays_of_rows(c.b);
	begin = { scale * exp2_fast(begin.x), scale * exp2_fast(begin.y) };
	dq = left<W, false>(m, x, c, begin);
	dk = left<W, true>(m, x, c, rows);
	dv = values<W>(m, x, c, rows);
	if (!p.dg)
		return;
	behind = exp2_fast(end) * states_dot<W>(m);
	if (threadIdx.x % 4 == 0) {
		m.own[c.group][acc_row(0)] = dq.x - dk.x;
		m.own[c.group][acc_row(2)] = dq.y - dk.y;
		behind += dv.x + dv.y;
	}
	behind = warp_sum(behind);
	if (threadIdx.x % 32 == 0)
		m.behind[warp] = behind;
	__syncthreads();	/* own and behind are there */
	if (!warp)
		decays<W>(m, x.dg, p.dg_row, c);
}

template <int W> static void chunks(const struct mma_run &p)
{
	dim3 grid(div_up(p.a.t, TILE), p.a.heads, p.a.b);
	size_t bytes = sizeof(chunk_smem<W>);

	shared_room(chunk_kernel<W>, bytes);
	launch(chunk_kernel<W>, grid, THREADS, bytes, p);
}

void mma_scalar_chunks(const struct mma_run &p)
{
	if (p.a.dk <= 64)
		chunks<64>(p);
	else
		chunks<128>(p);
}

size_t mma_scalar_chunk_room(const struct linattn &a)
{
	return a.dk <= 64 ? sizeof(chunk_smem<64>) : sizeof(chunk_smem<128>);
}
