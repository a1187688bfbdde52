// SPDX-License-Identifier: MIT
/*
 * gla - gated linear attention
 *
 *     q, k, v = x {q,k,v}_proj^T -> heads of K, K, V
 *     S_t = diag(alpha_t) S_(t-1) + k_t v_t^T,  o_t = K^(-1/2) S_t^T q_t
 *
 * The decays alpha come from x, are fixed (retention, Sun et al. 2023, arXiv 2307.08621) or
 * none (linear attention). Yang et al. 2023, arXiv 2312.06635, where gk_proj has rank 16, tau
 * is 16 and each head's output is normalised and gated. Documentation/gla.md.
 */
#include "dims.h"
#include "kernels_linattn.h"

enum {
	KEY = CONFIG_GLA_KEY_DIM ? CONFIG_GLA_KEY_DIM : D > 1 ? D / 2 : 1,
	VALUE = CONFIG_GLA_VALUE_DIM ? CONFIG_GLA_VALUE_DIM : D,
	WIDTH_Q = H * KEY,
	WIDTH_K = H * KEY,
	WIDTH_V = H * VALUE,
	MAPS_Q = 0,
	MAPS_V = 0,
	SHARED = 0,
};

#define LEAF(x) x "_proj.weight"

#include "gla.h"

static const struct mixer gla = {
	.name = "gla",
	.taps_read = gla_TAPS_READ,
	.taps_written = gla_TAPS_WRITTEN,
	GLA_OPS,
};
MIXER_REGISTER(gla);
