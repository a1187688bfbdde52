// SPDX-License-Identifier: MIT
/*
 * Short convolutions over positions. A thread has W channels of a run of positions, whose
 * last inputs stay in its registers: W is WIDE for the usual four taps, else 1.
 */
#include "kernels_conv.h"
#include "rows.cuh"
#include "silu.cuh"

enum {
	USUAL = 4,		/* taps */
	LANES = 32,		/* threads side by side */
	DEEP = 4,		/* runs of a block */
	RUN = 16,		/* positions of a thread, forward */
	RUN_BWD = 32,		/* the same, backward, at least */
	THREADS = 128,		/* of a block of one row */
	PART_MAX = 12 << 20,	/* bytes of partial sums and kept rows, if runs can be longer */
};

/* Runs of a sequence. */
static inline __host__ __device__ int runs_of(int t, int run)
{
	return (t + run - 1) / run;
}

/* The taps of W channels, 0 where none is. */
template <int W, int N> struct taps {
	float w[N][W], bias[W];
};

/* Is j one of the last @count of N? Known to the compiler where taps are the usual. */
template <int N> static __device__ __forceinline__ bool last_of(int j, int count)
{
	return N == USUAL || j >= N - count;
}

/* They begin at w[@at]. */
template <int W, int N>
static __device__ __forceinline__ void taps_load(struct taps<W, N> &s, const struct conv &a, int c,
						 int at)
{
#pragma unroll
	for (int e = 0; e < W; e++) {
#pragma unroll
		for (int j = 0; j < N; j++) {
			int k = j - at;

			s.w[j][e] = k >= 0 && k < a.taps ? get(real_of(a.w) + (long)(c + e) * a.taps + k) : 0;
		}
		s.bias[e] = a.bias ? get(real_of(a.bias) + c + e) : 0;
	}
}

/* Before SiLU; x[j] meets tap j. */
template <int W, int N>
static __device__ __forceinline__ void before_silu(float (&sum)[W], const struct taps<W, N> &s,
						   const float (&x)[N][W], int count)
{
#pragma unroll
	for (int e = 0; e < W; e++)
		sum[e] = s.bias[e];
#pragma unroll
	for (int j = 0; j < N; j++)
		if (last_of<N>(j, count))
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[e] = fmaf(s.w[j][e], x[j][e], sum[e]);
}

/* x[1..N) come one to the front. */
template <int W, int N> static __device__ __forceinline__ void advance(float (&x)[N][W])
{
#pragma unroll
	for (int j = 0; j < N - 1; j++)
#pragma unroll
		for (int e = 0; e < W; e++)
			x[j][e] = x[j + 1][e];
}

/* p[0..W), or zeros where it is not @inside. */
template <int W>
static __device__ __forceinline__ void load_if(float (&x)[W], const real *p, bool inside)
{
#pragma unroll
	for (int e = 0; e < W; e++)
		x[e] = 0;
	if (inside)
		row_load<W>(x, p);
}

/* The inputs before position @t of a sequence at @x, to x[1..N). */
template <int W, int N>
static __device__ __forceinline__ void load_past(float (&win)[N][W], const struct conv &a,
						 const real *x, int t)
{
#pragma unroll
	for (int j = 1; j < N; j++)
		load_if<W>(win[j], x + (t - N + j) * a.x_row, t - N + j >= 0 && j > N - a.taps);
}

template <int W, int N>
static __global__ void __launch_bounds__(LANES * DEEP) conv_fwd_kernel(struct conv a)
{
	int c = (blockIdx.x * LANES + threadIdx.x) * W, runs = runs_of(a.t, RUN);
	long run = (long)blockIdx.y * DEEP + threadIdx.y, i = run / runs;
	int from = run % runs * RUN, to = min(from + RUN, a.t);
	const real *x = real_of(a.x) + i * a.t * a.x_row + c;
	real *y = real_of(a.y) + i * a.t * a.y_row + c;
	float win[N][W];
	struct taps<W, N> s;

	if (c >= a.c || i >= a.b)
		return;
	taps_load(s, a, c, N - a.taps);
	load_past(win, a, x, from);
#pragma unroll 4
	for (int t = from; t < to; t++) {
		float sum[W];

		advance(win);
		row_load<W>(win[N - 1], x + t * a.x_row);
		before_silu(sum, s, win, a.taps);
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[e] = silu(sum[e]);
		row_store<W>(y + t * a.y_row, sum);
	}
}

/* Is there a thread for WIDE channels? */
static bool conv_wide(const struct conv *a, const void *dx, const void *dy)
{
	return a->taps == USUAL && a->c % WIDE == 0 && row_wide(a->x, a->x_row) &&
	       row_wide(a->y, a->y_row) && row_wide(dx, 0) && row_wide(dy, 0);
}

static dim3 conv_grid(const struct conv *a, int w, int run)
{
	return dim3(div_up(a->c, LANES * w), div_up(a->b * runs_of(a->t, run), DEEP));
}

void k_conv_fwd(const struct conv *a)
{
	dim3 block(LANES, DEEP);

	if (conv_wide(a, NULL, NULL))
		conv_fwd_kernel<WIDE, USUAL><<<conv_grid(a, WIDE, RUN), block, 0, cuda_stream()>>>(*a);
	else
		conv_fwd_kernel<1, CONV_TAPS_MAX><<<conv_grid(a, 1, RUN), block, 0,
						    cuda_stream()>>>(*a);
	CUDA_LAUNCHED();
}

/* ---- backward ------------------------------------------------------------------- */

/*
 * dw, db: [blocks][c][taps] and [blocks][c], parts of the sums
 * next: [b][runs][taps - 1][c], gradients behind each run, where dx is dy and who has them
 *	writes over them; else NULL
 */
struct conv_bwd {
	struct conv a;
	real *dx;
	const real *dy;
	int run;
	float *dw, *db;
	real *next;
};

static __global__ void __launch_bounds__(THREADS) keep_next_kernel(struct conv_bwd n)
{
	const struct conv &a = n.a;
	int c = blockIdx.x * THREADS + threadIdx.x, runs = runs_of(a.t, n.run);
	long run = blockIdx.y, i = run / runs;

	for (int k = 0; c < a.c && k < a.taps - 1; k++) {
		long t = (run % runs + 1) * n.run + k;

		if (t < a.t)
			n.next[(run * (a.taps - 1) + k) * a.c + c] =
				n.dy[(i * a.t + t) * a.y_row + c];
	}
}

/* dst[channel * stride] = sum of the block's runs, one below the other */
template <int W>
static __device__ __forceinline__ void put_sum(float *dst, int stride, const float (&own)[W],
					       int channels)
{
	__shared__ float all[DEEP][LANES * W];

	__syncthreads();
#pragma unroll
	for (int e = 0; e < W; e++)
		all[threadIdx.y][threadIdx.x * W + e] = own[e];
	__syncthreads();
	for (int e = threadIdx.y * LANES + threadIdx.x; e < LANES * W; e += LANES * DEEP) {
		int c = blockIdx.x * LANES * W + e;
		float sum = all[0][e];

		for (int r = 1; r < DEEP; r++)
			sum += all[r][e];
		if (c < channels)
			dst[(long)c * stride] = sum;
	}
}

/* What one position adds to the sums. */
template <int W, int N>
static __device__ __forceinline__ void add_position(float (&dw)[N][W], float (&db)[W],
						    const float (&d)[W], const float (&x)[N][W],
						    int count)
{
#pragma unroll
	for (int e = 0; e < W; e++)
		db[e] += d[e];
#pragma unroll
	for (int j = 0; j < N; j++)
		if (last_of<N>(j, count))
#pragma unroll
			for (int e = 0; e < W; e++)
				dw[j][e] = fmaf(d[e], x[j][e], dw[j][e]);
}

/* dx = sum over j of w_j d_(N - 1 - j), d the last N gradients before SiLU */
template <int W, int N>
static __device__ __forceinline__ void put_dx(real *dx, const struct taps<W, N> &first,
					      const float (&d)[N][W])
{
	float sum[W] = {};

#pragma unroll
	for (int j = 0; j < N; j++)
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[e] = fmaf(first.w[j][e], d[N - 1 - j][e], sum[e]);
	row_store<W>(dx, sum);
}

/* A thread goes taps - 1 positions beyond its run, whose gradients reach back into it. */
template <int W, int N>
static __global__ void __launch_bounds__(LANES * DEEP) conv_bwd_kernel(struct conv_bwd n)
{
	const struct conv &a = n.a;
	int c = (blockIdx.x * LANES + threadIdx.x) * W, runs = runs_of(a.t, n.run);
	long run = (long)blockIdx.y * DEEP + threadIdx.y, i = run / runs;
	int from = run % runs * n.run, to = min(from + n.run, a.t), lag = a.taps - 1;
	const real *x = real_of(a.x) + i * a.t * a.x_row + c, *dy = n.dy + i * a.t * a.y_row + c;
	const real *next = n.next + run * lag * a.c + c;
	real *dx = n.dx + i * a.t * a.x_row + c;
	float win[N][W], d[N][W] = {}, dw[N][W] = {}, db[W] = {};
	struct taps<W, N> s, first;

	if (c < a.c && i < a.b) {
		taps_load(s, a, c, N - a.taps);
		if (N != USUAL)
			taps_load(first, a, c, 0);
		load_past(win, a, x, from);
#pragma unroll 2
		for (int t = from; t < to + lag; t++) {
			bool inside = t < to, kept = n.next && !inside;
			const real *g = kept ? next + (long)(t - to) * a.c : dy + t * a.y_row;
			float pre[W];

			advance(win);
			advance(d);
			load_if<W>(win[N - 1], x + t * a.x_row, t < a.t);
			load_if<W>(d[N - 1], g, t < a.t);
			before_silu(pre, s, win, a.taps);
#pragma unroll
			for (int e = 0; e < W; e++)
				d[N - 1][e] *= silu_grad(pre[e]);
			if (inside)
				add_position(dw, db, d[N - 1], win, a.taps);
			if (t >= from + lag)
				put_dx(dx + (t - lag) * a.x_row, N == USUAL ? s : first, d);
		}
	}
	for (int j = 0; j < N; j++)
		if (last_of<N>(j, a.taps))
			put_sum<W>(n.dw + (long)blockIdx.y * a.c * a.taps + j - (N - a.taps),
				   a.taps, dw[j], a.c);
	put_sum<W>(n.db + (long)blockIdx.y * a.c, 1, db, a.c);
}

/* Bytes of sums, and of what is kept; where these begin. */
static size_t bwd_bytes(const struct conv *a, int run, bool keep, size_t *at)
{
	size_t runs = (size_t)a->b * runs_of(a->t, run), blocks = (runs + DEEP - 1) / DEEP;

	*at = blocks * a->c * (a->taps + 1) * sizeof(float);
	return *at + (keep ? runs * (a->taps - 1) * a->c * sizeof(real) : 0);
}

void k_conv_bwd(const struct conv *a, act_t *dx, grad_t *dw, grad_t *db, const act_t *dy)
{
	struct conv_bwd n = { *a, real_of(dx), real_of(dy), RUN_BWD };
	dim3 block(LANES, DEEP), grid;
	bool keep = dx == dy;
	size_t at;

	while (bwd_bytes(a, n.run, keep, &at) > PART_MAX && n.run < a->t)
		n.run *= 2;
	n.dw = (float *)workspace_part(bwd_bytes(a, n.run, keep, &at));
	n.db = n.dw + at / sizeof(float) / (a->taps + 1) * a->taps;
	n.next = keep ? (real *)((char *)n.dw + at) : NULL;
	if (keep) {
		keep_next_kernel<<<dim3(div_up(a->c, THREADS), a->b * runs_of(a->t, n.run)),
				   THREADS, 0, cuda_stream()>>>(n);
		CUDA_LAUNCHED();
	}
	if (conv_wide(a, dx, dy)) {
		grid = conv_grid(a, WIDE, n.run);
		conv_bwd_kernel<WIDE, USUAL><<<grid, block, 0, cuda_stream()>>>(n);
	} else {
		grid = conv_grid(a, 1, n.run);
		conv_bwd_kernel<1, CONV_TAPS_MAX><<<grid, block, 0, cuda_stream()>>>(n);
	}
	CUDA_LAUNCHED();
	sum_parts(sum_to<1>{ { dw } }, n.dw, grid.y, a->c * a->taps);
	if (db)
		sum_parts(sum_to<1>{ { db } }, n.db, grid.y, a->c);
}

/* ---- decode --------------------------------------------------------------------- */

/* The slot that x goes to is that of the oldest input, which the same thread reads. */
template <int W, int N>
static __global__ void __launch_bounds__(THREADS)
conv_step_kernel(struct conv a, struct cache_rows past, const int32_t *pos)
{
	int c = (blockIdx.x * THREADS + threadIdx.x) * W, lag = a.taps - 1, p;
	long i = blockIdx.y;
	real *ring = real_of(past.base) + i * past.seq + c;
	float win[N][W], sum[W];
	struct taps<W, N> s;

	let_next();
	after_previous();
	if (c >= a.c)
		return;
	p = pos[i];
	taps_load(s, a, c, N - a.taps);
#pragma unroll
	for (int j = 0; j < N - 1; j++) {
		int from = p - (N - 1) + j;

		load_if<W>(win[j], ring + from % past.slots * past.row,
			   from >= 0 && from >= p - lag);
	}
	row_load<W>(win[N - 1], real_of(a.x) + i * a.x_row + c);
	row_store<W>(ring + p % past.slots * past.row, win[N - 1]);
	before_silu(sum, s, win, a.taps);
#pragma unroll
	for (int e = 0; e < W; e++)
		sum[e] = silu(sum[e]);
	row_store<W>(real_of(a.y) + i * a.y_row + c, sum);
}

void k_conv_step(const struct conv *a, const struct cache_rows *past, const int32_t *pos)
{
	if (conv_wide(a, past->base, NULL) && past->seq % WIDE == 0 && past->row % WIDE == 0)
		launch(conv_step_kernel<WIDE, USUAL>, dim3(div_up(a->c, THREADS * WIDE), a->b),
		       THREADS, 0, *a, *past, pos);
	else
		launch(conv_step_kernel<1, CONV_TAPS_MAX>, dim3(div_up(a->c, THREADS), a->b),
		       THREADS, 0, *a, *past, pos);
}
