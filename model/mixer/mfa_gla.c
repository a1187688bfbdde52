// SPDX-License-Identifier: MIT
/*
 * mfa_gla - gated linear attention with one key for all heads
 *
 *     q^, k, v^ = x S_{q,k,v}^T [c];  q_h = q^ Q_c,h;  v_h = v^ V_c,h
 *
 * and then gla, with keys of c: many heads, and a large state, at few parameters. With a
 * value width of 0 the heads share their values too, as in multi-matrix factorization
 * attention itself (Hu et al. 2024, arXiv 2412.19255), which has softmax where this has a
 * recurrence. Documentation/mfa-gla.md.
 */
#include "dims.h"
#include "kernels_linattn.h"

enum {
	KEY = CONFIG_MFA_LATENT_DIM,
	OWN_VALUES = CONFIG_MFA_VALUE_DIM > 0,
	VALUE = OWN_VALUES ? CONFIG_MFA_VALUE_DIM : KEY,
	WIDTH_Q = KEY,
	WIDTH_K = KEY,
	WIDTH_V = KEY,
	MAPS_Q = H,
	MAPS_V = OWN_VALUES * H,
	SHARED = LINATTN_K | (OWN_VALUES ? 0 : LINATTN_V) |
		 (IS_ENABLED(CONFIG_MFA_SHARED_DECAY) ? LINATTN_G : 0),
};

#define LEAF(x) "S_" x ".weight"

#include "gla.h"

static const struct mixer mfa_gla = {
	.name = "mfa_gla",
	.taps_read = mfa_gla_TAPS_READ,
	.taps_written = mfa_gla_TAPS_WRITTEN,
	GLA_OPS,
};
MIXER_REGISTER(mfa_gla);
