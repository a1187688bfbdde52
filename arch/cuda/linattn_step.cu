// SPDX-License-Identifier: MIT
/*
 * One position of linear recurrences: the state is read and written once, and takes the
 * time. A block has a slice of columns of one head, its threads all rows side by side.
 */
#include "linattn.cuh"
#include "rows.cuh"

enum {
	THREADS = 128,
	LANES = 8,		/* threads of a row: with 16 bytes each, 128 bytes of it */
	DEEP = THREADS / LANES,	/* rows side by side */
	EACH = 8,		/* rows under way in a thread */
	ROWS = DEEP * EACH,	/* of a tile, which is in shared memory: registers hold less of it */
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

/* W elements of the state to their place in shared memory, without waiting for them. */
template <int W> static __device__ __forceinline__ void fetch(float *to, const float *from)
{
	if (W == 4)
		copy16(to, from);
	else
		asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
			     : : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
			     "n"(W * sizeof(float)) : "memory");
}

/*
 * Rows c, c + DEEP, ... of a slice of @state take in @v; @sum: their part of the outputs. What
 * is there at position 0 is read, so that nothing waits for the position, and not used.
 */
template <int W>
static __device__ __forceinline__ void step_rows(const struct step_row *row, const float (*tile)[W],
						 int n, float *state, long dv, const float (&v)[W],
						 bool begins, float (&sum)[W])
{
#pragma unroll
	for (int j = 0; j < EACH; j++) {
		int r = threadIdx.x / LANES + j * DEEP;
		struct step_row x;
		float s[W];

		if (r >= n)
			break;
		x = row[r];
#pragma unroll
		for (int e = 0; e < W; e++) {
			s[e] = (begins ? 0 : x.alpha * tile[j * THREADS][e]) + x.k * v[e];
			sum[e] = fmaf(x.q, s[e], sum[e]);
		}
		row_store<W>(state + r * dv, s);
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

template <int W> static __global__ void __launch_bounds__(THREADS)
step_kernel(struct linattn a, float *state, long seq, const int32_t *pos)
{
	__shared__ alignas(16) float tile[EACH * THREADS][W];
	__shared__ struct step_row row[ROWS];
	int h = blockIdx.y, i = blockIdx.z, e0 = (blockIdx.x * LANES + threadIdx.x % LANES) * W;
	float v[W] = {}, sum[W] = {};
	bool begins, inside = e0 < a.dv;

	let_next();
	after_previous();
	state += i * seq + (long)h * a.dk * a.dv + e0;
	for (int c = 0; c < a.dk; c += ROWS) {
		int n = min(a.dk - c, ROWS);

#pragma unroll
		for (int j = 0; j < EACH; j++) {
			int r = threadIdx.x / LANES + j * DEEP;

			if (inside && r < n)
				fetch<W>(tile[j * THREADS + threadIdx.x], state + (long)(c + r) * a.dv);
		}
		copy_commit();
		if (!c) {
			begins = !pos[i];
			for (int e = 0; inside && e < W; e++)
				v[e] = get(linattn_v(a, i, h) + e0 + e);
		}
		if (threadIdx.x < n)
			row[threadIdx.x] = step_row_of(a, i, h, c + threadIdx.x);
		copy_wait<0>();
		__syncthreads();
		if (inside)
			step_rows<W>(row, tile + threadIdx.x, n, state + (long)c * a.dv, a.dv, v, begins,
				     sum);
		__syncthreads();	/* no one reads rows any more */
	}
	sum_rows<W>(sum);
	for (int e = 0; threadIdx.x < LANES && inside && e < W; e++)
		put(real_of(a.o) + ((long)i * a.heads + h) * a.dv + e0 + e, sum[e]);
}

void k_linattn_step(const struct linattn *a, acc_t *state, long seq, const int32_t *pos)
{
	bool wide = (uintptr_t)state % 16 == 0 && seq % 4 == 0 && a->dv % 4 == 0;
	dim3 grid(div_up(a->dv, LANES * (wide ? 4 : 1)), a->heads, a->b);

	launch(wide ? step_kernel<4> : step_kernel<1>, grid, THREADS, 0, *a, state, seq, pos);
}
