// SPDX-License-Identifier: MIT
/*
 * Attention forward and backward: which path takes a shape, and delta = <d_o, o>.
 */
#include "attn.cuh"
#include "rows.cuh"

enum {
	DELTA_LANES = 8,	/* of a row: 16 bytes each make a row of 64 */
	DELTA_THREADS = 256,
};

/* Do rows of this tensor begin at multiples of 16 bytes? */
static bool aligned(const void *p, long row, long head, int width)
{
	return (uintptr_t)p % 16 == 0 && row % 8 == 0 && head % 8 == 0 && width % 8 == 0;
}

struct attn_run attn_run_of(const struct attn *a)
{
	struct attn_run p = {};

	p.a = *a;
	p.scale = a->scale;
	p.ra = a->ra_scale;
	p.vec = aligned(a->q, a->q_row, a->q_head, a->dk) &&
		aligned(a->k, a->k_row, a->k_head, a->dk) &&
		aligned(a->v, a->v_row, a->v_head, a->dv) &&
		aligned(a->o, a->o_row, a->o_head, a->dv);
	return p;
}

void k_attn_fwd(const struct attn *a)
{
	struct attn_run p = attn_run_of(a);

	if (attn_wgmma_takes(p))
		attn_wgmma_fwd(p);
	else if (attn_mma_takes(p))
		attn_mma_fwd(p);
	else
		attn_any_fwd(p);
}

/* delta = <d_o, o>; dgamma = delta / gamma. DELTA_LANES lanes a row and head. */
static __global__ void __launch_bounds__(DELTA_THREADS) delta_kernel(struct attn_run p)
{
	const struct attn &a = p.a;
	long at = (long)blockIdx.x * (DELTA_THREADS / DELTA_LANES) + threadIdx.x / DELTA_LANES;
	bool inside = at < (long)a.b * a.t * a.heads;
	int lane = threadIdx.x % DELTA_LANES;
	float sum = 0;

	if (inside) {
		long from = at / a.heads * a.o_row + at % a.heads * a.o_head;
		const real *o = real_of(a.o) + from, *d_o = p.d_o + from;

		if (p.vec) {
			for (int e = lane * 8; e < a.dv; e += DELTA_LANES * 8) {
				float x[8], y[8];

				row_load<8>(x, o + e);
				row_load<8>(y, d_o + e);
#pragma unroll
				for (int j = 0; j < 8; j++)
					sum += x[j] * y[j];
			}
		} else {
			for (int e = lane; e < a.dv; e += DELTA_LANES)
				sum += get(o + e) * get(d_o + e);
		}
	}
	for (int step = DELTA_LANES / 2; step; step /= 2)
		sum += __shfl_xor_sync(~0u, sum, step);
	if (!inside || lane)
		return;
	p.delta[at] = sum;
	if (a.gamma && p.dgamma)
		p.dgamma[at] = a.gamma[at] == 0 ? 0 : sum / a.gamma[at];
}

void k_attn_bwd(const struct attn *a, act_t *dq, act_t *dk, act_t *dv, acc_t *dgamma,
		const act_t *d_o, acc_t *delta)
{
	struct attn_run p = attn_run_of(a);
	long rows = (long)a->b * a->t * a->heads, per = DELTA_THREADS / DELTA_LANES;

	p.vec = p.vec && aligned(dq, 0, 0, 0) && aligned(dk, 0, 0, 0) && aligned(dv, 0, 0, 0) &&
		aligned(d_o, 0, 0, 0);
	p.dq = real_of(dq);
	p.dk = real_of(dk);
	p.dv = real_of(dv);
	p.dgamma = dgamma;
	p.d_o = real_of(d_o);
	p.delta = delta;
	if (attn_wgmma_takes(p)) {
		attn_wgmma_bwd(p);
		return;
	}
	delta_kernel<<<(rows + per - 1) / per, DELTA_THREADS, 0, cuda_stream()>>>(p);
	CUDA_LAUNCHED();
	if (attn_mma_takes(p) && attn_k_heads(*a) == attn_v_heads(*a))
		attn_mma_bwd(p);
	else
		attn_any_bwd(p);
}
