// SPDX-License-Identifier: MIT
/*
 * One position of linear recurrences: the state is read and written once, and takes the
 * time. A block has a slice of columns of one head, its threads all rows side by side.
 */
#include "linattn.cuh"
#include "rows.cuh"

enum {
	THREADS = 256,
	LANES = 8,		/* threads of a row: with 16 bytes each, 128 bytes of it */
	DEEP = THREADS / LANES,	/* rows side by side */
	EACH = 4,		/* rows under way in a thread */
};

/* Key, query (scaled) and decay of a row of the state. */
struct step_row {
	float k, q, alpha;
};

static __device__ __forceinline__ struct step_row step_row_of(const struct linattn &a, int i, int h,
							      int c)
{
	const float *g = linattn_g(a, i, h);
	float alpha = linattn_alpha(a, h);

	if (g)
		alpha = expf(g[a.decay == LINATTN_VECTOR ? c : 0]);
	return { get(linattn_k(a, i, h) + c), (float)a.scale * get(linattn_q(a, i, h) + c), alpha };
}

/*
 * Rows c, c + DEEP, ... of a slice of @state take in @v; @sum: their part of the outputs. What
 * is there at position 0 is read, so that nothing waits for the position, and not used.
 */
template <int W>
static __device__ __forceinline__ void step_rows(const struct linattn &a, int i, int h, int c,
						 float *state, const float (&v)[W], bool begins,
						 float (&sum)[W])
{
	struct step_row row[EACH];
	float s[EACH][W] = {};

#pragma unroll
	for (int j = 0; j < EACH; j++)
		if (c + j * DEEP < a.dk)
			row_load<W>(s[j], state + (long)(c + j * DEEP) * a.dv);
#pragma unroll
	for (int j = 0; j < EACH; j++)
		if (c + j * DEEP < a.dk)
			row[j] = step_row_of(a, i, h, c + j * DEEP);
#pragma unroll
	for (int j = 0; j < EACH; j++) {
		if (c + j * DEEP >= a.dk)
			continue;
#pragma unroll
		for (int e = 0; e < W; e++) {
			s[j][e] = (begins ? 0 : row[j].alpha * s[j][e]) + row[j].k * v[e];
			sum[e] = fmaf(row[j].q, s[j][e], sum[e]);
		}
		row_store<W>(state + (long)(c + j * DEEP) * a.dv, s[j]);
	}
}

/* The block's sum of each column, by its first threads. */
template <int W> static __device__ __forceinline__ void sum_rows(float (&sum)[W])
{
	__shared__ float all[THREADS / 32][LANES][W];
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
	for (int e = 0; e < W; e++) {
		for (int step = 16; step >= LANES; step /= 2)
			sum[e] += __shfl_xor_sync(~0u, sum[e], step);
		if (lane < LANES)
			all[warp][lane][e] = sum[e];
	}
	__syncthreads();
#pragma unroll
	for (int e = 0; e < W; e++) {
		sum[e] = 0;
		for (int w = 0; w < THREADS / 32; w++)
			sum[e] += all[w][threadIdx.x % LANES][e];
	}
}

template <int W> static __global__ void __launch_bounds__(THREADS, 4)
step_kernel(struct linattn a, float *state, long seq, const int32_t *pos)
{
	int h = blockIdx.y, i = blockIdx.z, e0 = (blockIdx.x * LANES + threadIdx.x % LANES) * W;
	float v[W] = {}, sum[W] = {};
	bool begins;

	let_next();
	after_previous();
	begins = !pos[i];
	state += i * seq + (long)h * a.dk * a.dv + e0;
	if (e0 < a.dv) {
		for (int e = 0; e < W; e++)
			v[e] = get(linattn_v(a, i, h) + e0 + e);
		for (int c = threadIdx.x / LANES; c < a.dk; c += DEEP * EACH)
			step_rows<W>(a, i, h, c, state, v, begins, sum);
	}
	sum_rows<W>(sum);
	for (int e = 0; threadIdx.x < LANES && e0 < a.dv && e < W; e++)
		put(real_of(a.o) + ((long)i * a.heads + h) * a.dv + e0 + e, sum[e]);
}

void k_linattn_step(const struct linattn *a, acc_t *state, long seq, const int32_t *pos)
{
	bool wide = (uintptr_t)state % 16 == 0 && seq % 4 == 0 && a->dv % 4 == 0;
	dim3 grid(div_up(a->dv, LANES * (wide ? 4 : 1)), a->heads, a->b);

	launch(wide ? step_kernel<4> : step_kernel<1>, grid, THREADS, 0, *a, state, seq, pos);
}
