// SPDX-License-Identifier: MIT
/*
 * Attention of one new query per sequence against its cache, for float builds, which
 * check: a block owns a sequence and a head, KEYS keys at a time, with an online softmax.
 * attn_step.cu is the same for bf16, fast.
 */
#include "kernels_attn.h"
#include "rows.cuh"

enum { KEYS = 128 };	/* of a turn, and threads of a block */

/* One row of a softmax over turns. */
struct running {
	float max, sum;
};

static __device__ float block_max(float x, float *part)
{
	for (int step = 16; step; step /= 2)
		x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	for (int i = 0; i < KEYS / 32; i++)
		x = fmaxf(x, part[i]);
	return x;
}

static __device__ float dot(const real *x, const real *y, int n)
{
	float sum = 0;

	for (int e = 0; e < n; e++)
		sum = fmaf(get(x + e), get(y + e), sum);
	return sum;
}

/* Score of key @u; @k: head @h's keys of sequence @i. */
static __device__ float score(const struct attn_step &a, const real *k, int i, int h, int u)
{
	const real *q = real_of(a.q) + i * a.q_row + (long)h * a.dk;
	const real *ring = real_of(a.ring) + i * a.cache_stride +
			   ((long)(u % (a.ra_window + 1)) * a.heads + h) * a.dk;
	float s = (float)a.scale * dot(q, k + u * a.k_row, a.dk);

	if (a.ra_scale != 0 && a.pos[i] - u <= a.ra_window)
		s += (float)a.ra_scale * dot(ring, k + a.pos[i] * a.k_row, a.dk);
	return s;
}

/* o[dv] and @r take in keys u0..; p[KEYS] is for their exponentials. */
static __device__ void turn(const struct attn_step &a, const real *v, float *o, float *p,
			    float *part, struct running &r, float s, int u0, int n)
{
	float max = fmaxf(r.max, block_max(s, part)), fix = expf(r.max - max), e = expf(s - max);

	r.max = max;
	r.sum = r.sum * fix + block_sum(e, part);
	p[threadIdx.x] = e;
	__syncthreads();
	for (int c = threadIdx.x; c < a.dv; c += KEYS) {
		float sum = u0 ? o[c] * fix : 0;

		for (int j = 0; j < n; j++)
			sum = fmaf(p[j], get(v + (u0 + j) * a.v_row + c), sum);
		o[c] = sum;
	}
}

static __global__ void __launch_bounds__(KEYS) step_kernel(struct attn_step a)
{
	extern __shared__ float o[];	/* [dv] */
	__shared__ float p[KEYS], part[32];
	int i = blockIdx.y, h = blockIdx.x, pos = a.pos[i];
	long row = (long)i * a.heads + h;
	const real *k = real_of(a.k) + i * a.cache_stride + h / a.group * a.k_head;
	const real *v = real_of(a.v) + i * a.cache_stride + h / a.group * a.v_head;
	float *route = a.route ? a.route + row * a.route_stride : NULL;
	struct running r = { -INFINITY, 0 };
	float f;

	for (int u0 = 0; u0 <= pos; u0 += KEYS) {
		int u = u0 + threadIdx.x;
		float s = u <= pos ? score(a, k, i, h, u) : -INFINITY;

		if (route && u <= pos)
			route[u] = s;
		turn(a, v, o, p, part, r, s, u0, min(KEYS, pos + 1 - u0));
	}
	f = (a.gamma ? a.gamma[row] : 1) / r.sum;
	for (int c = threadIdx.x; c < a.dv; c += KEYS)
		put(real_of(a.o) + row * a.dv + c, f * o[c]);
	for (int u = threadIdx.x; route && u <= pos; u += KEYS)
		route[u] = f * expf(route[u] - r.max);
}

void k_attn_step(const struct attn_step *a)
{
	step_kernel<<<dim3(a->heads, a->b), KEYS, a->dv * sizeof(float), cuda_stream()>>>(*a);
	CUDA_LAUNCHED();
}
