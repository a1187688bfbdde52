// SPDX-License-Identifier: MIT
/*
 * States before every chunk of TILE positions, and gradients of those behind it, in bf16, of
 * linear recurrences whose decays are vectors, but for what rest.cuh has. A block has a
 * state, or its gradient, in registers; while it multiplies, the next chunk is copied.
 */
#include "vector.cuh"

/* COLS: columns of a warp, which has 32 rows; RUN: positions of a thread's column */
template <class S> struct keep {
	static constexpr int K = S::K, THREADS = S::V > 128 ? 512 : 256, ROWS_K = K / 32;
	static constexpr int COLS = S::V / (THREADS / 32 / ROWS_K), RUN = TILE * K / 2 / THREADS;
	static constexpr int RUNS = TILE / RUN;
};

/*
 * x: keys, or queries of a sweep back; y: values, or gradients of outputs; w: x with decays to
 * the chunk's end, or from its beginning on; run: sums of logarithms; end: decays of the chunk.
 */
template <class S> struct keep_smem {
	typedef keep<S> P;
	bf16 x[TILE * P::K], w[TILE * P::K], y[2][TILE * S::V];
	float g[TILE * P::K], run[P::RUNS][P::K], end[P::K];
	struct mma_head head;
};

/* A block's place: direction, segment @n of head @at, and a warp's part of the state. */
struct keep_place {
	bool back;
	int at, n, t0, t1, row, col;
};

template <class S>
static __device__ __forceinline__ struct keep_place keep_place_of(const struct mma_run &p)
{
	int n = blockIdx.x, warp = threadIdx.x / 32;

	return { blockIdx.z != 0, (int)blockIdx.y, n, n * p.seg, min(p.a.t, (n + 1) * p.seg),
		 warp % keep<S>::ROWS_K * 32, warp / keep<S>::ROWS_K * keep<S>::COLS };
}

/* Keys or queries of the chunk at @t, and decays. */
template <class S, bool AHEAD>
static __device__ __forceinline__ void load_left(keep_smem<S> &m, const struct linattn &a,
						 const struct keep_place &x, int t)
{
	mma_fetch<S::K, TILE, keep<S>::THREADS, AHEAD>(m.x, x.back ? m.head.q : m.head.k,
						       x.back ? a.q_row : a.k_row, t, x.t1, a.dk);
	load_decays<S::K, S::K, TILE, keep<S>::THREADS, AHEAD>(m.g, m.head, a, t, x.t1);
}

/* Values or gradients of outputs. */
template <class S>
static __device__ __forceinline__ void load_right(bf16 *y, const keep_smem<S> &m,
						  const struct linattn &a, const struct keep_place &x,
						  int t)
{
	mma_load<S::V, TILE, keep<S>::THREADS>(y, x.back ? m.head.d_o : m.head.v,
					       x.back ? a.heads * a.dv : a.v_row, t, x.t1, a.dv);
}

/* Logarithm to base 2 of the decays of two columns at position @t. */
template <class S>
static __device__ __forceinline__ float2 log_of(const keep_smem<S> &m, int t, int c)
{
	return *(const float2 *)&m.g[t * S::K + c] * LOG2E;
}

/* Their sum over this thread's run. */
template <class S> static __device__ __forceinline__ void run_sum(keep_smem<S> &m)
{
	int c = threadIdx.x % (S::K / 2) * 2, run = threadIdx.x / (S::K / 2);
	float2 all = { 0, 0 };

#pragma unroll
	for (int r = 0; r < keep<S>::RUN; r++)
		all += log_of<S>(m, run * keep<S>::RUN + r, c);
	*(float2 *)&m.run[run][c] = all;
}

/* m.w from m.x, when sums are there. */
template <class S, bool BACK>
static __device__ __forceinline__ void left(keep_smem<S> &m, float scale)
{
	constexpr int RUN = keep<S>::RUN;
	int c = threadIdx.x % (S::K / 2) * 2, run = threadIdx.x / (S::K / 2);
	int first = tile_at<S::K>(run * RUN, c / 8) + c % 8;
	float2 sum = { 0, 0 }, all = { 0, 0 };

#pragma unroll
	for (int j = 0; j < keep<S>::RUNS; j++) {
		float2 one = *(const float2 *)&m.run[j][c];

		all += one;
		if (BACK ? j < run : j > run)
			sum += one;
	}
	if (!run)
		*(float2 *)&m.end[c] = exp2_pair(all);
#pragma unroll
	for (int j = 0; j < RUN; j++) {
		int r = BACK ? j : RUN - 1 - j, at = chunk_at(first, r % 8) + r * S::K;
		float2 log = log_of<S>(m, run * RUN + r, c), x = pair_get(m.x + at);

		if (BACK)
			sum += log;
		pair_put(m.w + at, x * exp2_pair(sum) * scale);
		if (!BACK)
			sum += log;
	}
}

/* s = decays of the chunk times s + w^T y */
template <class S>
static __device__ __forceinline__ void enter(float (&s)[2][keep<S>::COLS / 8][4],
					     const keep_smem<S> &m, const bf16 *y,
					     const struct keep_place &x)
{
	constexpr int N = keep<S>::COLS / 8;
	int lane = threadIdx.x % 32, row = x.row + lane / 4;
	uint32_t right = address<S::V>(y, lane % 16, x.col / 8 + lane / 16);

#pragma unroll
	for (int j = 0; j < 2; j++)
		mma_rows_scale<N>(s[j], m.end[row + 16 * j], m.end[row + 16 * j + 8]);
#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		uint32_t a[2][4], b[4];

		mma_left_t<S::K>(a[0], m.w, x.row, k);
		mma_left_t<S::K>(a[1], m.w, x.row + 16, k);
#pragma unroll
		for (int n = 0; n < N; n += 2) {
			matrix_get_t(b, address_at(right, n) + 32 * k * S::V);
#pragma unroll
			for (int j = 0; j < 2; j++) {
				mma(s[j][n], a[j], b[0], b[1]);
				mma(s[j][n + 1], a[j], b[2], b[3]);
			}
		}
	}
}

/* 16 rows of a state, rounded. */
template <int N>
static __device__ __forceinline__ void kept_put(bf16 *p, const float (*c)[4], int row, int col,
						int dk, int dv)
{
	row += threadIdx.x % 32 / 4;
	col += mma_swap_col();
	p += (long)row * dv + col;
#pragma unroll
	for (int i = 0; i < 4; i += 2, p += 8 * dv)
#pragma unroll
		for (int n = 0; n < N; n += 2) {
			uint2 x = mma_swap(c[n] + i, c[n + 1] + i);

			if (row + i * 4 < dk && col + 8 * n < dv)
				*(uint2 *)(p + 8 * n) = x;
		}
}

/* Decays of a segment as far as chunk @n, @all those before it. */
template <class S>
static __device__ __forceinline__ void keep_decay(const keep_smem<S> &m, const struct mma_run &p,
						  const struct keep_place &x, int n, float &all)
{
	if (p.segs == 1 || (int)threadIdx.x >= p.a.dk)
		return;
	all *= m.end[threadIdx.x];
	mma_kept_decay(p, x.back, x.at, n)[threadIdx.x] = all;
}

template <class S>
static __global__ void __launch_bounds__(keep<S>::THREADS, 512 / keep<S>::THREADS) keep_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	keep_smem<S> &m = *(keep_smem<S> *)mem;
	constexpr int N = keep<S>::COLS / 8;
	const struct linattn &a = p.a;
	const struct keep_place x = keep_place_of<S>(p);
	int chunks = div_up(x.t1 - x.t0, TILE), first = x.back ? chunks - 1 : 0, way = x.back ? -1 : 1;
	bool begins = x.n == (x.back ? p.segs - 1 : 0);
	float *added = mma_added(p, x.back, x.at, x.n);
	int steps = chunks - !added;
	float s[2][N][4], all = 1;

	mma_head_of(m.head, p, x.at / a.heads, x.at % a.heads);
	after_previous();
	let_next();	/* may count on inputs */
	if (steps) {
		load_left<S, false>(m, a, x, x.t0 + first * TILE);
		load_right<S>(m.y[0], m, a, x, x.t0 + first * TILE);
		copy_commit();
	}
#pragma unroll
	for (int j = 0; j < 2; j++)
		mma_state_get<N>(s[j], mma_begin(p, x.back, x.at, x.n), x.row + 16 * j, x.col, a.dk,
				 a.dv);
	for (int n = 0; n < chunks; n++) {
		int chunk = first + way * n, next = x.t0 + (chunk + way) * TILE;

#pragma unroll
		for (int j = 0; (n || begins) && j < 2; j++)
			kept_put<N>(mma_kept(p, x.back, x.at, x.t0 / TILE + chunk), s[j], x.row + 16 * j,
				    x.col, a.dk, a.dv);
		if (n == steps)
			break;
		copy_wait<0>();
		__syncthreads();	/* the chunk is there, the one before is done with */
		if (n + 1 < steps) {
			load_right<S>(m.y[(n + 1) % 2], m, a, x, next);
			load_left<S, true>(m, a, x, next);
		}
		run_sum<S>(m);
		__syncthreads();	/* sums are there */
		if (x.back)
			left<S, true>(m, a.scale);
		else
			left<S, false>(m, 1);
		__syncthreads();	/* left operands are there, and no one reads what they are of */
		if (n + 1 < steps)
			load_left<S, false>(m, a, x, next);
		copy_commit();
		enter<S>(s, m, m.y[n % 2], x);
		keep_decay<S>(m, p, x, x.t0 / TILE + chunk, all);
	}
#pragma unroll
	for (int j = 0; j < 2; j++)
		mma_state_put<N>(added, s[j], x.row + 16 * j, x.col, a.dk, a.dv);
}

void mma_vector_keep(const struct mma_run &p)
{
	by_shape(p.a, [&](auto shape) {
		typedef decltype(shape) S;
		dim3 grid(p.segs, p.a.b * p.a.heads, 2);

		shared_room(keep_kernel<S>, sizeof(keep_smem<S>));
		launch(keep_kernel<S>, grid, keep<S>::THREADS, sizeof(keep_smem<S>), p);
	});
	mma_scan_kept(p);
}
