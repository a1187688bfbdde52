// SPDX-License-Identifier: MIT
/*
 * Products of each expert's rows in bf16, on mma.sync (sm_80 and later): tiles of TM rows
 * by TN columns, the inner dimension INNER at a time in a ring of STAGES in shared memory.
 * An operand stands there as memory has it, with the inner dimension along its rows or
 * down its columns; ldmatrix turns the latter.
 */
#include "attn_mma.cuh"
#include "moe_gemm.cuh"
#include "rows.cuh"

enum {
	INNER = 64,
	STAGES = 3,
	FEW = 256,		/* rows of all experts: below, weights are all that counts */
};

/* A matrix: element (o, l) of outer and inner dimension at p[o ld + l] or, @down, p[l ld + o] */
struct operand {
	const bf16 *p;
	long ld;
	int outer, inner;
};

/* Tile of O outer indices from @o0, INNER inner ones from @l0; 0 outside. */
template <int O, bool DOWN, int THREADS>
static __device__ __forceinline__ void fetch(bf16 *s, const struct operand &x, int o0, int l0,
					     bool vec)
{
	constexpr int ROWS = DOWN ? INNER : O, COLS = DOWN ? O : INNER;
	int r0 = DOWN ? l0 : o0, c0 = DOWN ? o0 : l0;
	int rows = DOWN ? x.inner : x.outer, cols = DOWN ? x.outer : x.inner;

#pragma unroll
	for (int n = threadIdx.x; n < ROWS * COLS / 8; n += THREADS) {
		int r = n / (COLS / 8), c = n % (COLS / 8), col = c0 + c * 8;
		bool inside = r0 + r < rows && col < cols;
		const bf16 *src = x.p + (r0 + r) * x.ld + col;
		bf16 *dst = s + tile_at<COLS>(r, c);

		if (vec) {
			copy16(dst, inside ? src : x.p, inside);
		} else {
			bf16 v[8];

			for (int i = 0; i < 8; i++)
				v[i] = inside && col + i < cols ? src[i] : __float2bfloat16(0);
			*(uint4 *)dst = *(const uint4 *)v;
		}
	}
}

/* Left operand: 16 outer indices from @o0, 16 inner ones from @l0. */
template <int O, bool DOWN>
static __device__ __forceinline__ void left(uint32_t (&a)[4], const bf16 *s, int o0, int l0)
{
	int lane = threadIdx.x % 32;

	if (DOWN)
		ldmatrix_t(a, s + tile_at<O>(l0 + lane % 8 + lane / 16 * 8, o0 / 8 + lane / 8 % 2));
	else
		ldmatrix(a, s + tile_at<INNER>(o0 + lane % 16, l0 / 8 + lane / 16));
}

/* Right operand: the same, 8 outer indices in b[0] and b[1], 8 in b[2] and b[3]. */
template <int O, bool DOWN>
static __device__ __forceinline__ void right(uint32_t (&b)[4], const bf16 *s, int o0, int l0)
{
	int lane = threadIdx.x % 32;

	if (DOWN)
		ldmatrix_t(b, s + tile_at<O>(l0 + lane % 16, o0 / 8 + lane / 16));
	else
		ldmatrix(b, s + tile_at<INNER>(o0 + lane % 8 + lane / 16 * 8, l0 / 8 + lane / 8 % 2));
}

static __device__ __forceinline__ void pair_store(bf16 *p, float x, float y)
{
	*(uint32_t *)p = pack_bf16(x, y);
}

static __device__ __forceinline__ void pair_store(float *p, float x, float y)
{
	*(float2 *)p = make_float2(x, y);
}

/* Neighbours, or x alone unless @both: c = alpha x + beta c. */
template <class OUT>
static __device__ __forceinline__ void finish_pair(OUT *c, const struct gemm &g, float x, float y,
						   bool both, bool vec)
{
	x *= (float)g.alpha;
	y *= (float)g.alpha;
	if (g.beta != 0) {
		x += (float)g.beta * get(c);
		y += both ? (float)g.beta * get(c + 1) : 0;
	}
	if (vec) {
		pair_store(c, x, y);
		return;
	}
	put(c, x);
	if (both)
		put(c + 1, y);
}

/* What a block is: WM by WN warps with a part of the tile each. */
template <int TM, int TN, int WM, int WN> struct shape {
	static constexpr int THREADS = 32 * WM * WN;
	static constexpr int M = TM / WM, N = TN / WN;	/* of a warp */
	static constexpr int BYTES = STAGES * (TM + TN) * INNER * 2;
};

/* c[TM][TN] of the tile whose operands are @a, from row @m0, and @b, from column @n0 */
template <int TM, int TN, int WM, int WN, bool TA, bool TB, class OUT>
static __device__ __forceinline__ void tile(const struct gemm &g, const struct operand &a,
					    const struct operand &b, OUT *c, int m0, int n0, bool vec)
{
	typedef shape<TM, TN, WM, WN> S;
	extern __shared__ __align__(128) char mem[];
	bf16 *as = (bf16 *)mem, *bs = as + STAGES * TM * INNER;
	int warp = threadIdx.x / 32, wm = warp / WN * S::M, wn = warp % WN * S::N;
	int turns = div_up(a.inner, INNER), lane = threadIdx.x % 32;
	float sum[S::M / 16][S::N / 8][4] = {};

	for (int n = 0; n < STAGES - 1; n++) {
		if (n < turns) {
			fetch<TM, TA, S::THREADS>(as + n * TM * INNER, a, m0, n * INNER, vec);
			fetch<TN, !TB, S::THREADS>(bs + n * TN * INNER, b, n0, n * INNER, vec);
		}
		copy_commit();
	}
	for (int n = 0; n < turns; n++) {
		const bf16 *x = as + n % STAGES * TM * INNER, *y = bs + n % STAGES * TN * INNER;
		int next = n + STAGES - 1, to = next % STAGES;

		copy_wait<STAGES - 2>();
		__syncthreads();	/* turn n is there, and no one reads turn n - 1 */
		if (next < turns) {
			fetch<TM, TA, S::THREADS>(as + to * TM * INNER, a, m0, next * INNER, vec);
			fetch<TN, !TB, S::THREADS>(bs + to * TN * INNER, b, n0, next * INNER, vec);
		}
		copy_commit();
#pragma unroll
		for (int l = 0; l < INNER; l += 16) {
			uint32_t p[S::M / 16][4], q[4];

#pragma unroll
			for (int i = 0; i < S::M / 16; i++)
				left<TM, TA>(p[i], x, wm + 16 * i, l);
#pragma unroll
			for (int j = 0; j < S::N / 16; j++) {
				right<TN, !TB>(q, y, wn + 16 * j, l);
#pragma unroll
				for (int i = 0; i < S::M / 16; i++) {
					mma(sum[i][2 * j], p[i], q[0], q[1]);
					mma(sum[i][2 * j + 1], p[i], q[2], q[3]);
				}
			}
		}
	}
	vec = vec && g.ldc % 2 == 0 && g.n % 2 == 0 && (uintptr_t)c % (2 * sizeof(OUT)) == 0;
#pragma unroll
	for (int i = 0; i < S::M / 16; i++)
#pragma unroll
		for (int j = 0; j < S::N / 8; j++)
#pragma unroll
			for (int k = 0; k < 4; k += 2) {
				int row = m0 + wm + 16 * i + lane / 4 + k / 2 * 8;
				int col = n0 + wn + 8 * j + lane % 4 * 2;

				if (row < a.outer && col < b.outer)
					finish_pair(c + row * g.ldc + col, g, sum[i][j][k],
						    sum[i][j][k + 1], col + 1 < b.outer, vec);
			}
}

/* Rows of an expert by the columns of its weights. */
template <int TM, int TN, int WM, int WN, bool TB>
static __global__ void __launch_bounds__(32 * WM * WN) rows_kernel(struct grouped p)
{
	const struct gemm &g = p.g;
	struct group own;

	let_next();
	after_previous();
	own = group_at(p, blockIdx.y, TM);
	if (own.rows)
		tile<TM, TN, WM, WN, false, TB>(
			g, { (const bf16 *)g.a + own.row * g.lda, g.lda, own.rows, g.k },
			{ (const bf16 *)g.b + own.e * g.sb, g.ldb, g.n, g.k },
			(bf16 *)g.c + own.row * g.ldc, 0, blockIdx.x * TN, p.vec);
}

/* The gradient of an expert's weights: its rows are the inner dimension. */
template <int TM, int TN, int WM, int WN>
static __global__ void __launch_bounds__(32 * WM * WN) grad_kernel(struct grouped p)
{
	const struct gemm &g = p.g;
	int e = blockIdx.z, row, rows;

	after_previous();
	row = p.first[e];
	rows = p.first[e + 1] - row;
	tile<TM, TN, WM, WN, true, false>(
		g, { (const bf16 *)g.a + row * g.lda, g.lda, g.m, rows },
		{ (const bf16 *)g.b + row * g.ldb, g.ldb, g.n, rows }, (float *)g.c + e * g.sc,
		blockIdx.y * TM, blockIdx.x * TN, p.vec);
}

static bool pieces(const void *p, long ld, int width)
{
	return row_wide(p, ld) && width % WIDE == 0;
}

template <int TM, int TN, int WM, int WN> static void rows_launch(const struct grouped &p, int pairs)
{
	typedef shape<TM, TN, WM, WN> S;
	const dim3 grid(div_up(p.g.n, TN), group_tiles(pairs, p.experts, TM));
	auto *kernel = p.g.tb ? rows_kernel<TM, TN, WM, WN, true> :
				rows_kernel<TM, TN, WM, WN, false>;

	shared_room(kernel, S::BYTES);
	launch(kernel, grid, S::THREADS, S::BYTES, p);
}

void k_moe_gemm(const struct gemm *g, const struct moe *m)
{
	const struct grouped p = { *g, m->first, m->experts,
				   pieces(g->a, g->lda, g->k) &&
				   pieces(g->b, g->ldb, g->tb ? g->k : g->n) && g->sb % WIDE == 0 };

	if (m->n * m->k <= FEW)
		rows_launch<16, 64, 1, 4>(p, m->n * m->k);
	else
		rows_launch<128, 128, 2, 4>(p, m->n * m->k);
}

void k_moe_gemm_grad(const struct gemm *g, const struct moe *m)
{
	typedef shape<128, 128, 2, 4> S;
	const struct grouped p = { *g, m->first, m->experts,
				   pieces(g->a, g->lda, g->m) && pieces(g->b, g->ldb, g->n) };
	const dim3 grid(div_up(g->n, 128), div_up(g->m, 128), m->experts);

	shared_room(grad_kernel<128, 128, 2, 4>, S::BYTES);
	launch(grad_kernel<128, 128, 2, 4>, grid, S::THREADS, S::BYTES, p);
}
