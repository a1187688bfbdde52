// SPDX-License-Identifier: MIT
/*
 * Rotary positions, and what heads share. A block has one position: its cosines and sines
 * are made once, in double, for all sequences and heads, and kept in shared memory.
 */
#include "gemm.cuh"
#include "kernels_rope.h"
#include "rows.cuh"

enum {
	THREADS = 256,
	GROUPS = 2,		/* groups of heads of a launch */
};

/* ---- rotations ------------------------------------------------------------------ */

struct rope_run {
	struct rope r;
	struct rope_heads x[GROUPS];
	int heads[GROUPS];	/* heads of the groups up to this one */
};

/* cs[i] and cs[half + i] = cos and sin of the angle of pair i. */
static __device__ void rope_angles(float *cs, const struct rope &r)
{
	int half = r.width / 2;

	for (int i = threadIdx.x; i < half; i += THREADS) {
		double turn = pow(r.theta, -2.0 * i / r.width), sn, cn;

		after_previous();	/* which may have written positions */
		sincos((r.pos ? r.pos[blockIdx.x] : (int)blockIdx.x) * turn, &sn, &cn);
		cs[i] = cn;
		cs[half + i] = r.back ? -sn : sn;
	}
}

/* W pairs from @p on, @half apart. */
template <int W>
static __device__ __forceinline__ void rope_pairs(real *p, const float *cs, int half)
{
	float x[W], y[W], a[W], b[W];

	row_load<W>(x, p);
	row_load<W>(y, p + half);
#pragma unroll
	for (int e = 0; e < W; e++) {
		a[e] = x[e] * cs[e] - y[e] * cs[half + e];
		b[e] = y[e] * cs[e] + x[e] * cs[half + e];
	}
	row_store<W>(p, a);
	row_store<W>(p + half, b);
}

/* Rows u, u + t, ... of position u; with positions of their own, row u alone. */
template <int W> static __global__ void __launch_bounds__(THREADS) rope_kernel(struct rope_run p)
{
	extern __shared__ float cs[];
	const struct rope &r = p.r;
	int half = r.width / 2, pieces = half / W, heads = p.heads[GROUPS - 1];
	int each = r.pos ? r.n : r.t, rows = (r.n - 1 - (int)blockIdx.x) / each + 1;

	rope_angles(cs, r);
	after_previous();
	__syncthreads();
	for (int at = threadIdx.x; at < rows * heads * pieces; at += THREADS) {
		int i = at % pieces * W, h = at / pieces % heads, group = h >= p.heads[0];
		const struct rope_heads &x = p.x[group];
		long row = blockIdx.x + (long)(at / pieces / heads) * each;

		rope_pairs<W>(real_of(x.x) + row * x.row + (h - group * p.heads[0]) * x.head + i,
			      cs + i, half);
	}
}

static bool rope_wide(const struct rope *r, const struct rope_heads *x, int nr)
{
	bool wide = r->width / 2 % WIDE == 0;

	for (int j = 0; j < nr; j++)
		wide = wide && row_wide(x[j].x, x[j].row) && x[j].head % WIDE == 0;
	return wide;
}

void k_rope(const struct rope *r, const struct rope_heads *x, int nr)
{
	int rows = r->pos ? r->n : MIN(r->n, r->t), bytes = r->width * sizeof(float);

	for (; nr > 0; x += GROUPS, nr -= GROUPS) {
		struct rope_run p = { *r };

		for (int j = 0; j < GROUPS; j++) {
			p.x[j] = x[j < nr ? j : 0];
			p.heads[j] = (j ? p.heads[j - 1] : 0) + (j < nr ? x[j].heads : 0);
		}
		if (rope_wide(r, x, MIN(nr, GROUPS)))
			launch(rope_kernel<WIDE>, rows, THREADS, bytes, p);
		else
			launch(rope_kernel<1>, rows, THREADS, bytes, p);
	}
}

/* ---- what heads share ------------------------------------------------------------- */

/* Vectors of @heads heads of @n rows beside one of each row. */
struct heads_run {
	real *dst;
	const real *src;
	long row, head, ld;	/* strides of the many, row stride of the one */
	int n, heads, width;
};

template <int W> static __global__ void __launch_bounds__(THREADS) spread_kernel(struct heads_run p)
{
	long at = (long)blockIdx.x * THREADS + threadIdx.x;
	int pieces = p.width / W, j = at % pieces * W, h = at / pieces % p.heads;
	long i = at / pieces / p.heads;
	float x[W];

	let_next();
	after_previous();
	if (i >= p.n)
		return;
	row_load<W>(x, p.src + i * p.ld + j);
	row_store<W>(p.dst + i * p.row + h * p.head + j, x);
}

template <int W> static __global__ void __launch_bounds__(THREADS) sum_kernel(struct heads_run p)
{
	long at = (long)blockIdx.x * THREADS + threadIdx.x;
	int pieces = p.width / W, j = at % pieces * W;
	long i = at / pieces;
	float x[W], sum[W] = {};

	after_previous();
	if (i >= p.n)
		return;
#pragma unroll 4
	for (int h = 0; h < p.heads; h++) {
		row_load<W>(x, p.src + i * p.row + h * p.head + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[e] += x[e];
	}
	row_store<W>(p.dst + i * p.ld + j, sum);
}

static bool heads_wide(const struct heads_run &p)
{
	return row_wide(p.dst, p.row) && row_wide(p.src, p.ld) && p.head % WIDE == 0 &&
	       p.width % WIDE == 0;
}

static unsigned int heads_blocks(const struct heads_run &p, int vectors, int w)
{
	return ((long)p.n * vectors * (p.width / w) + THREADS - 1) / THREADS;
}

void k_heads_spread(act_t *dst, long row, long head, const act_t *src, long ld, int n, int heads,
		    int width)
{
	const struct heads_run p = { real_of(dst), real_of(src), row, head, ld, n, heads, width };

	if (heads_wide(p))
		launch(spread_kernel<WIDE>, heads_blocks(p, heads, WIDE), THREADS, 0, p);
	else
		launch(spread_kernel<1>, heads_blocks(p, heads, 1), THREADS, 0, p);
}

void k_heads_sum(act_t *dst, long ld, const act_t *src, long row, long head, int n, int heads,
		 int width)
{
	const struct heads_run p = { real_of(dst), real_of(src), row, head, ld, n, heads, width };

	if (heads_wide(p))
		launch(sum_kernel<WIDE>, heads_blocks(p, 1, WIDE), THREADS, 0, p);
	else
		launch(sum_kernel<1>, heads_blocks(p, 1, 1), THREADS, 0, p);
}

/* All rows, those behind pos too: the host does not know it. */
void k_gemm_past(const struct gemm *g, const int32_t *pos)
{
	struct gemm plain = *g, one = *g;
	bool joined = g->sc == g->m * g->ldc;	/* sequences follow each other in c */

	(void)pos;
	plain.ep = GEMM_PLAIN;
	plain.bias = NULL;
	k_gemm(&plain);
	one.m *= joined ? g->batch : 1;
	for (int i = 0; g->bias && i < (joined ? 1 : g->batch); i++) {
		one.c = (real *)g->c + i * g->sc;
		gemm_epilogue(&one);
	}
}
