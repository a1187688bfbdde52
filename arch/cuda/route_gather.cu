// SPDX-License-Identifier: MIT
/*
 * Gathering along routing rows of the modes none and rms: the tiles of the rows once
 * more, as left operands. A block owns TILE rows of the result and WIDTH of their
 * columns, and goes over the tiles of the other side in one order.
 */
#include "route_gather.cuh"

enum { WIDTH = 2 * SCORE_W };	/* columns of a block */

struct dense_smem {
	struct score_smem score;
	real p[TILE * TILE];		/* a tile of R^, rows queries */
};

/* p to alpha R^: entries below the threshold are dropped. */
static __device__ void tile_weights(tile_acc &p, const struct route &r, int i, int set, int t0,
				    float alpha)
{
	for (int half = 0; half < 2; half++) {
		int t = t0 + acc_row(2 * half);
		long row = route_row(r, i, set, t < r.a.t ? t : 0);
		float thr = r.thr[row], factor = alpha * r.inv[row];

#pragma unroll
		for (int c = 0; c < TILE / 8; c++)
#pragma unroll
			for (int k = 0; k < 4; k++)
				if (k / 2 == half)
					p[c][k] = p[c][k] >= thr ? factor * p[c][k] : 0;
	}
}

/* Columns [c0, c0 + SCORE_W) of TILE rows of one end to shared memory, rounded. */
static __device__ void tile_in(real *s, const struct gather &g, int i, int set, int pos, int c0)
{
	const struct columns &p = g.part;
	int t = g.r.a.t;

	if (!p.in_wide) {
		struct head_view v = { p.in + (long)i * t * p.ldi + (long)set * p.width, p.ldi };

		tile_load<SCORE_W>(s, v, pos, t, c0, p.width, g.vec);
		copy_commit();
		return;
	}
	for (int n = threadIdx.x; n < TILE * SCORE_W; n += TILE_THREADS) {
		int row = n / SCORE_W, c = n % SCORE_W;
		bool inside = pos + row < t && c0 + c < p.width;

		put(s + tile_at<SCORE_W>(row, c / 8) + c % 8,
		    inside ? p.in_wide[((long)i * t + pos + row) * p.ldi + c0 + c] : 0);
	}
}

/* out rows pos.. = sums + beta out */
static __device__ void tile_out(const float (*c)[4], const struct gather &g, int i, int set,
				int pos, int c0)
{
	const struct columns &p = g.part;

#pragma unroll
	for (int n = 0; n < SCORE_W / 8; n++) {
#pragma unroll
		for (int k = 0; k < 4; k++) {
			int row = pos + acc_row(k), col = c0 + acc_col(n, k);
			long at = ((long)i * g.r.a.t + row) * p.ldo + (long)set * p.width + col;

			if (row >= g.r.a.t || col >= p.width)
				continue;
			if (p.out_wide)
				p.out_wide[at] = c[n][k] + (g.beta == 0 ? 0 : g.beta * p.out_wide[at]);
			else
				put(p.out + at,
				    c[n][k] + (g.beta == 0 ? 0 : g.beta * get(p.out + at)));
		}
	}
}

template <bool TRANSPOSED> static __global__ void __launch_bounds__(TILE_THREADS)
dense_kernel(struct gather g, struct score_run run)
{
	__shared__ __align__(16) struct dense_smem mem;
	const struct route &r = g.r;
	int blocks = div_up(r.a.t, TILE), own = TRANSPOSED ? blockIdx.x : blocks - 1 - blockIdx.x;
	int i = blockIdx.y / r.nr, set = blockIdx.y % r.nr, c0 = blockIdx.z * WIDTH;
	int from = TRANSPOSED ? own : 0, to = TRANSPOSED ? blocks : own + 1;
	float c[2][SCORE_W / 8][4] = {};
	tile_acc p;
	tile_operand left;

	for (int other = from; other < to; other++) {
		int t0 = (TRANSPOSED ? other : own) * TILE, u0 = (TRANSPOSED ? own : other) * TILE;

		route_tile(p, mem.score, r, run, i, set, t0, u0);
		tile_weights(p, r, i, set, t0, g.alpha);
		if (TRANSPOSED)
			operand_put(mem.p, p);
		else
			operand_of(left, p);
		tile_in(mem.score.x[0], g, i, set, other * TILE, c0);
		tile_in(mem.score.x[1], g, i, set, other * TILE, c0 + SCORE_W);
		copy_wait<0>();
		__syncthreads();
		if (TRANSPOSED)
			operand_transposed(left, mem.p);
		mul_nn<SCORE_W>(c[0], left, mem.score.x[0]);
		mul_nn<SCORE_W>(c[1], left, mem.score.x[1]);
		__syncthreads();
	}
	tile_out(c[0], g, i, set, own * TILE, c0);
	tile_out(c[1], g, i, set, own * TILE, c0 + SCORE_W);
}

void gather_dense(const struct gather &g, bool transposed)
{
	struct score_run run = score_run_of(&g.r.a);
	dim3 grid(div_up(g.r.a.t, TILE), g.r.a.b * g.r.nr, div_up(g.part.width, WIDTH));

	if (transposed)
		dense_kernel<true><<<grid, TILE_THREADS, 0, cuda_stream()>>>(g, run);
	else
		dense_kernel<false><<<grid, TILE_THREADS, 0, cuda_stream()>>>(g, run);
	CUDA_LAUNCHED();
}

/* ---- interface ----------------------------------------------------------------- */

/* One part of the columns, by lists or by tiles. */
static void gather(const struct route *r, const struct columns &part, double alpha, double beta,
		   bool transposed, const int32_t *lists)
{
	struct gather g = { *r, part, (float)alpha, (float)beta,
			    row_wide(part.in, part.ldi) && part.width % WIDE == 0 };

	if (r->mode != ROUTE_TOPK)
		gather_dense(g, transposed);
	else if (transposed)
		gather_lists_back(g, lists);
	else
		gather_lists(g);
}

void k_route_gather_fwd(const struct route *r, const struct route_rows *y, const act_t *x,
			long ldx, int width, double alpha, double beta, void *scratch)
{
	const real *from = real_of(x);

	(void)width;
	(void)scratch;
	gather(r, { real_of(y->x), NULL, y->ld, from, NULL, ldx, y->width / r->nr }, alpha, beta,
	       false, NULL);
	if (y->wide)
		gather(r, { NULL, y->wide, y->wide_ld, from + y->width, NULL, ldx, y->wide_width },
		       alpha, beta, false, NULL);
}

void k_route_gather_bwd(const struct route *r, act_t *dx, long lddx, const struct route_rows *dy,
			int width, double alpha, double beta, void *scratch)
{
	int32_t *lists = (int32_t *)scratch;
	real *to = real_of(dx);

	(void)width;
	if (r->mode == ROUTE_TOPK)
		lists_sort(r, lists);
	gather(r, { to, NULL, lddx, real_of(dy->x), NULL, dy->ld, dy->width / r->nr }, alpha, beta,
	       true, lists);
	if (dy->wide)
		gather(r, { to + dy->width, NULL, lddx, NULL, dy->wide, dy->wide_ld,
			    dy->wide_width }, alpha, beta, true, lists);
}
