// SPDX-License-Identifier: MIT
/*
 * Products of a few rows, as decode has them, and epilogues as passes of their own.
 *
 * A block makes COLUMNS columns of the result for all rows: its warps share the inner
 * dimension, 32 at a time, and their sums are added in one order. In the tensor cores'
 * terms the rows are the 16 of the left operand, weights the 8 columns of the right one.
 * The inner dimension may come in any order that both agree on, so that a lane's eight
 * elements of two products are 16 bytes of one row. Before the kernel in front of this one
 * is done, weights at rest are read and others asked for.
 */
#include "act.cuh"
#include "gemm.cuh"
#include "rows.cuh"

enum {
	THIN_ROWS = 16,		/* more are cheaper in the library's tiles */
	COLUMNS = 8,
	WARPS = 8,
	THREADS = 32 * WARPS,
	INNER = 32,		/* of the inner dimension a warp takes at a time */
	AHEAD = 12,		/* such pieces of weights that a warp has under way, */
	AHEAD_SHORT = 3,	/* and where they are all there are */
	BLOCKS = 4,		/* of a multiprocessor */
};

/* k_weights_rest() */
static struct {
	const char *from;
	size_t bytes;
} rest;

/* One element behind the product: bias, activation, and where they go. */
struct finish {
	enum gemm_epilogue ep;
	const real *bias;
	real *aux;
	long ldaux;

	__device__ __forceinline__ float operator()(float x, long i, int j) const
	{
		if (bias)
			x += get(bias + j);
		if (ep == GEMM_BIAS_GELU) {
			put(aux + i * ldaux + j, x);
			x = gelu(rounded(x));
		} else if (ep == GEMM_DGELU) {
			x *= gelu_grad(get(aux + i * ldaux + j));
		}
		return x;
	}
};

static struct finish finish_of(const struct gemm *g)
{
	bool bias = g->ep == GEMM_BIAS || g->ep == GEMM_BIAS_GELU;

	return { g->ep, bias ? real_of(g->bias) : NULL, real_of(g->aux), g->ldaux };
}

/* This lane's 16 bytes of row @row of [rows][k], from @l on; 0 outside. */
static __device__ __forceinline__ uint4 piece(const bf16 *p, long ld, int row, int rows, int l, int k)
{
	return row < rows && l < k ? *(const uint4 *)(p + row * ld + l) : uint4{};
}

/* N pieces of the weights of columns @j0.. from inner index @l on. */
template <int N>
static __device__ __forceinline__ void weights(uint4 (&w)[N], const struct gemm &g, int j0, int l)
{
#pragma unroll
	for (int n = 0; n < N; n++)
		w[n] = piece((const bf16 *)g.b, g.ldb, j0 + threadIdx.x % 32 / 4, g.n,
			     l + n * WARPS * INNER, g.k);
}

/*
 * The same on their way to the second level cache, even while somebody still writes them:
 * what is asked for there stays what memory holds.
 */
static __device__ __forceinline__ void weights_ask(const struct gemm &g, int j0, int l)
{
	const bf16 *b = (const bf16 *)g.b;
	int j = j0 + threadIdx.x % 32 / 4;

	if (j < g.n && threadIdx.x % 2 == 0)	/* a sector is 16 elements */
		for (; l < g.k; l += WARPS * INNER)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(b + j * g.ldb + l));
}

/* sum += all rows of a times N pieces of weights, HALF pieces of the rows at a time. */
template <int N>
static __device__ __forceinline__ void multiply(float (&sum)[4], const struct gemm &g,
						const uint4 (&w)[N], int l)
{
	constexpr int HALF = N > 6 ? N / 2 : N;
	const bf16 *a = (const bf16 *)g.a;
	int row = threadIdx.x % 32 / 4;

#pragma unroll
	for (int n0 = 0; n0 < N; n0 += HALF) {
		uint4 x[HALF], y[HALF];

#pragma unroll
		for (int n = 0; n < HALF; n++) {
			int at = l + (n0 + n) * WARPS * INNER;

			x[n] = piece(a, g.lda, row, g.m, at, g.k);
			y[n] = piece(a, g.lda, row + 8, g.m, at, g.k);
		}
#pragma unroll
		for (int n = 0; n < HALF; n++) {
			const uint4 &v = w[n0 + n];

			mma(sum, { x[n].x, y[n].x, x[n].y, y[n].y }, v.x, v.y);
			mma(sum, { x[n].z, y[n].z, x[n].w, y[n].w }, v.z, v.w);
		}
	}
}

/* Sums of the warps, in order, and what is behind them. */
template <class OUT>
static __device__ __forceinline__ void finish_tile(const struct gemm &g, const struct finish &f,
						   const float (&part)[WARPS][THIN_ROWS][COLUMNS],
						   int j0)
{
	int i = threadIdx.x / COLUMNS, j = j0 + threadIdx.x % COLUMNS;
	OUT *c = (OUT *)g.c + i * g.ldc + j;
	float sum = 0;

	if (i >= g.m || j >= g.n)
		return;
	for (int n = 0; n < WARPS; n++)
		sum += part[n][i][threadIdx.x % COLUMNS];
	sum *= (float)g.alpha;
	if (g.beta != 0)
		sum += (float)g.beta * get(c);
	put(c, f(sum, i, j));
}

/*
 * N: pieces of weights that a warp has under way. With many of them two blocks share a
 * multiprocessor's registers, or the compiler puts the loads of the rows one behind the other.
 */
template <class OUT, int N> static __global__ void __launch_bounds__(THREADS, N > 6 ? 2 : 4)
thin_kernel(struct gemm g, struct finish f, bool rests)
{
	__shared__ float part[2][WARPS][THIN_ROWS][COLUMNS];
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, phase = 0;
	int l0 = warp * INNER + lane % 4 * 8, step = COLUMNS * gridDim.x;
	uint4 w[N];

	let_next();
	if (!rests) {
		weights_ask(g, COLUMNS * blockIdx.x, l0);
		after_previous();
	}
	weights(w, g, COLUMNS * blockIdx.x, l0);
	after_previous();
	for (int j0 = COLUMNS * blockIdx.x; j0 < g.n; j0 += step, phase ^= 1) {
		float sum[4] = {};

		for (int at = 0; at + warp * INNER < g.k; at += N * WARPS * INNER) {
			if (at)
				weights(w, g, j0, l0 + at);
			multiply(sum, g, w, l0 + at);
		}
		if (j0 + step < g.n)
			weights(w, g, j0 + step, l0);
		for (int e = 0; e < 4; e++)
			part[phase][warp][lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2] = sum[e];
		__syncthreads();
		finish_tile<OUT>(g, f, part[phase], j0);
	}
}

void k_weights_rest(const void *from, size_t bytes)
{
	rest.from = (const char *)from;
	rest.bytes = from ? bytes : 0;
}

template <class OUT> static void thin(const struct gemm *g)
{
	int grid = MIN(div_up(g->n, COLUMNS), BLOCKS * cuda_multiprocessors());
	bool rests = (uintptr_t)g->b - (uintptr_t)rest.from < rest.bytes;

	if (g->k <= AHEAD_SHORT * WARPS * INNER)
		launch(thin_kernel<OUT, AHEAD_SHORT>, grid, THREADS, 0, *g, finish_of(g), rests);
	else
		launch(thin_kernel<OUT, AHEAD>, grid, THREADS, 0, *g, finish_of(g), rests);
}

bool gemm_thin(const struct gemm *g, bool wide)
{
	if (!IS_ENABLED(CONFIG_REAL_BF16) || g->m > THIN_ROWS || g->ta || !g->tb || g->batch > 1 || g->k % WIDE ||
	    !row_wide(g->a, g->lda) || !row_wide(g->b, g->ldb))
		return false;
	if (wide)
		thin<float>(g);
	else
		thin<bf16>(g);
	return true;
}

template <class OUT>
static __global__ void __launch_bounds__(THREADS) loops_kernel(struct gemm g)
{
	size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
	long i = at / g.n, j = at % g.n;
	const real *a = (const real *)g.a + blockIdx.y * g.sa + i * (g.ta ? 1 : g.lda);
	const real *b = (const real *)g.b + blockIdx.y * g.sb + j * (g.tb ? g.ldb : 1);
	OUT *c = (OUT *)g.c + blockIdx.y * g.sc + i * g.ldc + j;
	float sum = 0;

	if (i >= g.m)
		return;
	for (long l = 0; l < g.k; l++)
		sum = fmaf(get(a + l * (g.ta ? g.lda : 1)), get(b + l * (g.tb ? 1 : g.ldb)), sum);
	put(c, (float)g.alpha * sum + (g.beta == 0 ? 0 : (float)g.beta * get(c)));
}

void gemm_loops(const struct gemm *g, bool wide)
{
	size_t n = (size_t)g->m * g->n;
	dim3 grid((n + THREADS - 1) / THREADS, MAX(g->batch, 1));

	if (wide)
		loops_kernel<float><<<grid, THREADS, 0, cuda_stream()>>>(*g);
	else
		loops_kernel<real><<<grid, THREADS, 0, cuda_stream()>>>(*g);
	CUDA_LAUNCHED();
}

static __global__ void __launch_bounds__(THREADS) epilogue_kernel(real *c, long ldc, int m, int n,
								  struct finish f)
{
	size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
	long i = at / n;
	int j = at % n;

	if (i < m)
		put(c + i * ldc + j, f(get(c + i * ldc + j), i, j));
}

void gemm_epilogue(const struct gemm *g)
{
	size_t n = (size_t)g->m * g->n;

	epilogue_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, cuda_stream()>>>(
		(real *)g->c, g->ldc, g->m, g->n, finish_of(g));
	CUDA_LAUNCHED();
}
