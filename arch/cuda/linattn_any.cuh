/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences of any shape
 *
 * A block of threads takes a slice of a head's state through the blocks of positions, in
 * registers: lanes are SLICE columns of the state, a warp has N of its rows. What the state
 * is multiplied by and what is added to it are rows of floats in shared memory.
 */
#ifndef TENON_CUDA_LINATTN_ANY_CUH
#define TENON_CUDA_LINATTN_ANY_CUH

#include "linattn.cuh"
#include "rows.cuh"

enum {
	ROWS = LINATTN_ROWS,
	SLICE = 32,		/* columns of the state */
};

/* N rows of the state in each of W warps. */
template <int ROWS_OF_WARP, int WARPS> struct any_shape {
	static constexpr int N = ROWS_OF_WARP, W = WARPS, THREADS = 32 * W, WIDTH = N * W;
	static constexpr int PITCH = WIDTH + 4;	/* of rows in shared memory, against conflicts */
};

/** any_by_width() - call(a shape whose state has @width rows) */
template <class F> static void any_by_width(int width, F call)
{
	if (width <= 32)
		call(any_shape<4, 8>());
	else if (width <= 64)
		call(any_shape<8, 8>());
	else if (width <= 128)
		call(any_shape<16, 8>());
	else if (width <= 256)
		call(any_shape<32, 8>());
	else if (width <= 512)
		call(any_shape<32, 16>());
	else if (width <= LINATTN_WIDTH_MAX)
		call(any_shape<64, 16>());
	else
		die("a linear recurrence of %d elements of a key or value: arch/cuda takes %d; lower "
		    "the width, or set CONFIG_ARCH_CPU=y", width, LINATTN_WIDTH_MAX);
}

/* Where rows go: activations, or [b*t][heads][width] that are added up later. */
struct any_out {
	real *act;
	long row, head;
	float *part;
	int width;
};

static inline struct any_out any_out_of(act_t *dst, long row, long head, float *part, int width)
{
	return { real_of(dst), row, head, part, width };
}

/* Element @c of row @at for head @h */
static __device__ __forceinline__ void any_put(const struct any_out &o, long at, int heads, int h,
					       int c, float x)
{
	if (o.part)
		o.part[(at * heads + h) * o.width + c] = x;
	else
		put(o.act + at * o.row + h * o.head + c, x);
}

/* Decays of one head from a position on; without g all are @one. */
struct any_decay {
	const float *g;
	long row;
	int col;
	float one;
};

static __device__ __forceinline__ struct any_decay any_decay_of(const struct linattn &a, int i,
								int h, int t0)
{
	const float *g = linattn_g(a, i, h);

	return { g ? g + t0 * a.g_row : NULL, a.g_row, a.decay == LINATTN_VECTOR,
		 linattn_alpha(a, h) };
}

static __device__ __forceinline__ float any_alpha(const struct any_decay &d, int r, int c)
{
	return d.g ? expf(d.g[r * d.row + c * d.col]) : d.one;
}

/* part[warp][t][lane] = left[t] state, of the warp's rows of the state */
template <int N>
static __device__ __forceinline__ void any_read(float *part, const float *left, int pitch,
						const float (&state)[N])
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

	left += warp * N;
	part += warp * ROWS * SLICE + lane;
#pragma unroll 4
	for (int t = 0; t < ROWS; t++) {
		float sum = 0;

#pragma unroll
		for (int k = 0; k < N; k += 4) {
			float4 x = *(const float4 *)(left + t * pitch + k);

			sum = fmaf(x.x, state[k], sum);
			sum = fmaf(x.y, state[k + 1], sum);
			sum = fmaf(x.z, state[k + 2], sum);
			sum = fmaf(x.w, state[k + 3], sum);
		}
		part[t * SLICE] = sum;
	}
}

/* What the warps of any_read() have for row @t. */
template <int W> static __device__ __forceinline__ float any_far(const float *part, int t)
{
	float sum = 0;

#pragma unroll
	for (int w = 0; w < W; w++)
		sum += part[(w * ROWS + t) * SLICE + threadIdx.x % 32];
	return sum;
}

/* state += left^T right, right [ROWS][SLICE] */
template <int N>
static __device__ __forceinline__ void any_write(float (&state)[N], const float *left, int pitch,
						 const float *right)
{
	left += threadIdx.x / 32 * N;
	right += threadIdx.x % 32;
#pragma unroll 4
	for (int t = 0; t < ROWS; t++) {
		float y = right[t * SLICE];

#pragma unroll
		for (int k = 0; k < N; k += 4) {
			float4 x = *(const float4 *)(left + t * pitch + k);

			state[k] = fmaf(x.x, y, state[k]);
			state[k + 1] = fmaf(x.y, y, state[k + 1]);
			state[k + 2] = fmaf(x.z, y, state[k + 2]);
			state[k + 3] = fmaf(x.w, y, state[k + 3]);
		}
	}
}

/*
 * Scores of a block, [2][ROWS][ROWS]: two threads share a sum, each of which writes its half;
 * on the diagonal one has all of it.
 */
struct any_pair {
	int t, u, half;
	bool whole;
};

static __device__ __forceinline__ struct any_pair any_pair_of(int thread)
{
	int x = thread / ROWS, y = thread % ROWS;

	return { max(x, y), min(x, y), x < y, x == y };
}

static __device__ __forceinline__ void any_pair_put(float (*a)[ROWS][ROWS],
						    const struct any_pair &p, float sum)
{
	a[p.half][p.t][p.u] = sum;
	if (p.whole)
		a[1][p.t][p.u] = 0;
}

/* <x, y> of columns of multiples of 4: all of @width, or half of them */
static __device__ __forceinline__ float any_dot(const float *x, const float *y, int width,
						const struct any_pair &p)
{
	int from = p.half ? width / 2 : 0, to = p.half || p.whole ? width : width / 2;
	float sum[4] = {};

#pragma unroll 4
	for (int c = from; c < to; c += 4) {
		float4 l = *(const float4 *)(x + c), r = *(const float4 *)(y + c);

		sum[0] = fmaf(l.x, r.x, sum[0]);
		sum[1] = fmaf(l.y, r.y, sum[1]);
		sum[2] = fmaf(l.z, r.z, sum[2]);
		sum[3] = fmaf(l.w, r.w, sum[3]);
	}
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/**
 * struct any_run - a recurrence with what a kernel is to make of it
 * @a: the recurrence
 * @d_o: gradient of o
 * @out: outputs, or gradients of values, queries or keys
 * @first: state, or its gradient, to begin with, [b][heads][dk][dv]; NULL: 0
 * @last: where the one at the end goes, [heads][dk][dv] of each sequence; or NULL
 * @last_seq: stride of @last from sequence to sequence
 * @len: positions of each sequence; NULL: all
 * @kept: states behind chunks, [b][heads][@chunks + 1][dv][LINATTN_WIDTH(dk)]
 * @chunks: of a head
 * @dg: q dq, then gradients of decays; with scalar decays one for each slice of columns
 * @dg_row: row stride of @dg
 * @dg_head: head stride of @dg, heads that share having their own
 */
struct any_run {
	struct linattn a;
	const real *d_o;
	struct any_out out;
	const float *first;
	float *last;
	long last_seq;
	const int32_t *len;
	float *kept;
	int chunks;
	float *dg;
	long dg_row, dg_head;
};

#ifdef CONFIG_REAL_BF16
/** linattn_mma_bwd_takes() - can the mma.sync path make these gradients? */
bool linattn_mma_bwd_takes(const struct linattn *a, const struct linattn_grad *d);
#else
static inline bool linattn_mma_bwd_takes(const struct linattn *a, const struct linattn_grad *d)
{
	(void)a, (void)d;
	return false;
}
#endif

/** linattn_mma_bwd() - mma.sync path: gradients, or the parts of those that heads share */
void linattn_mma_bwd(const struct any_run &r, const struct any_out &dq, const struct any_out &dk,
		     const struct any_out &dv, const struct linattn_grad *d);

/** linattn_any_values() - gradients of values, and of the first state */
void linattn_any_values(const struct any_run &p);

#endif
