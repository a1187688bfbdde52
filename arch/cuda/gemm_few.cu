// SPDX-License-Identifier: MIT
/*
 * Products of 17 to 64 rows, as decode of many sequences has them. A block makes COLUMNS
 * columns of the result for all rows from a slice of the inner dimension; the blocks of a
 * cluster have the other slices, and each adds up, in one order, its share of the rows. The
 * warps of a block are DEPTH pieces of the slice by SIDES groups of columns.
 */
#include "cluster.cuh"
#include "gemm_thin.cuh"

enum {
	ROWS = 64,
	COLUMNS = 32,
	SIDES = 2,
	DEPTH = 4,
	THREADS = 32 * SIDES * DEPTH,
	INNER = 32,		/* of the inner dimension a warp takes at a time */
	WIDTH = COLUMNS / SIDES,	/* columns of a warp */
	PITCH = COLUMNS + 4,	/* of a row of sums: banks */
	SLICE_MIN = 256,	/* inner elements of a block, at least */
	BLOCKS = 144,		/* that a product is split into, at most: about one a multiprocessor */
	COLUMNS_MAX = 8192,	/* wider ones are cheaper in the library's tiles */
};

/* Sums of one warp: rows 16 m and 16 m + 8 below, columns 8 n. */
template <int M> struct few_acc {
	float c[M][WIDTH / 8][4];
};

/* The warp's part of the slice [l, end). */
template <int M>
static __device__ __forceinline__ void multiply(struct few_acc<M> &sum, const bf16 *a,
						const bf16 *b, const struct gemm &g, int j0, int l,
						int end)
{
	int row = threadIdx.x % 32 / 4;

#pragma unroll 2
	for (; l < end; l += DEPTH * INNER) {
		uint4 w[WIDTH / 8], x[2 * M];

#pragma unroll
		for (int n = 0; n < WIDTH / 8; n++)
			w[n] = piece(b, g.ldb, j0 + 8 * n + row, g.n, l, end);
#pragma unroll
		for (int m = 0; m < 2 * M; m++)
			x[m] = piece(a, g.lda, 8 * m + row, g.m, l, end);
#pragma unroll
		for (int m = 0; m < M; m++) {
			const uint4 &u = x[2 * m], &v = x[2 * m + 1];

#pragma unroll
			for (int n = 0; n < WIDTH / 8; n++) {
				mma(sum.c[m][n], { u.x, v.x, u.y, v.y }, w[n].x, w[n].y);
				mma(sum.c[m][n], { u.z, v.z, u.w, v.w }, w[n].z, w[n].w);
			}
		}
	}
}

/* Sums of the slices, by the block that has them; of the warps of a slice. */
struct few_smem {
	float slice[ROWS * COLUMNS];		/* [rank][rows of the share][columns] */
	float part[DEPTH][ROWS][PITCH];
};

template <int M>
static __device__ __forceinline__ void part_put(float (&part)[ROWS][PITCH],
						const struct few_acc<M> &sum, int j0)
{
	int row = threadIdx.x % 32 / 4, col = j0 + threadIdx.x % 4 * 2;

#pragma unroll
	for (int m = 0; m < M; m++)
#pragma unroll
		for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
			for (int r = 0; r < 2; r++)
				*(float2 *)&part[16 * m + 8 * r + row][8 * n + col] =
					make_float2(sum.c[m][n][2 * r], sum.c[m][n][2 * r + 1]);
}

/* M: tiles of 16 rows */
template <class OUT, int M> static __global__ void __launch_bounds__(THREADS, 2)
few_kernel(struct gemm g, struct finish f, int slice)
{
	extern __shared__ __align__(16) char mem[];
	auto *s = (struct few_smem *)mem;
	const bf16 *a = (const bf16 *)g.a + blockIdx.z * g.sa;
	const bf16 *b = (const bf16 *)g.b + blockIdx.z * g.sb;
	OUT *c = (OUT *)g.c + blockIdx.z * g.sc;
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, side = warp % SIDES;
	int ranks = gridDim.x, rank = blockIdx.x, share = 16 * M / ranks;
	int j0 = blockIdx.y * COLUMNS, own = j0 + side * WIDTH;
	int l = rank * slice + warp / SIDES * INNER + lane % 4 * 8;
	int end = min((rank + 1) * slice, g.k);
	struct few_acc<M> sum = {};

	let_next();
	cluster_arrive();	/* this block runs: others may write to it */
	for (int n = 0; n < WIDTH; n += 8)
		if (own + n + lane / 4 < g.n)
			ask(b + (own + n + lane / 4) * g.ldb, l, end, DEPTH * INNER);
	after_previous();
	multiply(sum, a, b, g, own, l, end);
	part_put(s->part[warp / SIDES], sum, side * WIDTH);
	cluster_wait();
	__syncthreads();
	for (int n = threadIdx.x; n < 16 * M * COLUMNS; n += THREADS) {
		int i = n / COLUMNS, j = n % COLUMNS;
		float x = 0;

#pragma unroll
		for (int d = 0; d < DEPTH; d++)
			x += s->part[d][i][j];
		*cluster_peer(&s->slice[(rank * share + i % share) * COLUMNS + j], i / share) = x;
	}
	cluster_arrive();
	cluster_wait();
	for (int n = threadIdx.x; n < share * COLUMNS; n += THREADS) {
		int i = rank * share + n / COLUMNS, j = j0 + n % COLUMNS;
		float x = 0;

		for (int k = 0; k < ranks; k++)
			x += s->slice[k * share * COLUMNS + n];
		if (i < g.m && j < g.n)
			finish_put(c + i * g.ldc + j, g, f, x, i, j);
	}
}

template <class OUT> static void few(const struct gemm *g)
{
	auto *kernel = g->m > 32 ? few_kernel<OUT, 4> : few_kernel<OUT, 2>;
	int columns = div_up(g->n, COLUMNS), batch = MAX(g->batch, 1), ranks = 1, slice;

	while (cuda_capability() >= 90 && ranks < CLUSTER_MAX &&
	       2 * ranks * columns * batch <= BLOCKS && 2 * ranks * SLICE_MIN <= g->k)
		ranks *= 2;
	slice = div_up(div_up(g->k, ranks), DEPTH * INNER) * DEPTH * INNER;
	launch_clusters(kernel, dim3(ranks, columns, batch), THREADS, sizeof(struct few_smem), *g,
			finish_of(g), slice);
}

bool gemm_few(const struct gemm *g, bool wide)
{
	long strides = g->batch > 1 ? g->sa | g->sb : 0;

	if (!IS_ENABLED(CONFIG_REAL_BF16) || g->m > ROWS || g->n > COLUMNS_MAX || g->ta || !g->tb ||
	    g->k % WIDE || strides % WIDE || !row_wide(g->a, g->lda) || !row_wide(g->b, g->ldb))
		return false;
	if (wide)
		few<float>(g);
	else
		few<bf16>(g);
	return true;
}
