// SPDX-License-Identifier: MIT
/*
 * Mechanism 1 of recip, MLP-to-attention gate: the final hidden layer, projected to
 * z [B,T,G], pooled over positions, scales each head of the next attention.
 *
 *     gamma = (1 - alpha_g) + alpha_g sigmoid(pool(z) gate_to_heads^T)
 *
 * Pools: causal (mean of z_0..z_t), token (z_t), sequence (mean over all T; leaks
 * the future). Documentation/gate.md.
 */
#include "arch.h"
#include "recip.h"

static const double alpha_g = CONFIG_RA_MLA_MLP_GATE_ALPHA;

/* gamma from pooled z, times @scale */
static void heads_of(const struct recip *r, double scale)
{
	k_gemm(&(struct gemm){
		.m = r->rows, .n = H, .k = G, .tb = true, .a = r->z, .lda = r->ldz,
		.b = r->w->gate_to_heads, .ldb = G, .c = r->gamma, .ldc = H, .alpha = scale });
	k_head_gate_fwd(r->gamma, r->gamma, (size_t)r->rows * H, alpha_g);
	r->a->out->head_gate = r->gamma;
}

void recip_gate_fwd(const struct recip *r)
{
	const struct mixer_args *a = r->a;

	if (RECIP_CAUSAL)
		k_causal_mean_fwd(r->z, r->z, a->b, a->t, G);
	else if (RECIP_SEQUENCE)
		k_sequence_mean_fwd(r->z, r->z, a->b, a->t, G);
	heads_of(r, 1);
}

void recip_gate_bwd(const struct recip *r)
{
	const struct mixer_args *a = r->a;

	k_head_gate_bwd(r->dlogit, r->gamma, a->dout.head_gate, (size_t)r->rows * H, alpha_g);
	linear_dw(RECIP_GRAD(r, gate_to_heads), r->dlogit, r->z, r->rows, H, G, 1, 0);
	linear_dx(r->dz, r->dlogit, r->w->gate_to_heads, r->rows, H, G, 1, 0);
	if (RECIP_CAUSAL)
		k_causal_mean_bwd(r->dz, r->dz, a->b, a->t, G);
	else if (RECIP_SEQUENCE)
		k_sequence_mean_bwd(r->dz, r->dz, a->b, a->t, G);
}

void recip_gate_step(const struct recip *r, int pos)
{
	heads_of(r, RECIP_CAUSAL ? 1.0 / (pos + 1) : 1);
}

/* gate_proj and gate_to_heads */
double recip_gate_flops(int b, int t)
{
	return linear_flops((double)b * t, G, F + H);
}

double recip_gate_flops_bwd(int b, int t)
{
	return 2 * recip_gate_flops(b, t);
}
