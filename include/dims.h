/* SPDX-License-Identifier: MIT */
/**
 * DOC: dimensions of the configured model
 *
 * Dimensions carry the letters of the field. BATCH_SIZE and BLOCK_SIZE are
 * capacities: every entry point takes the actual b and t.
 *
 * Kernels (kernels.h) take theirs as arguments and do not see these: one compiled kernel
 * serves every width.
 */
#ifndef TENON_DIMS_H
#define TENON_DIMS_H

#include "types.h"

enum {
	NL = CONFIG_N_LAYER,
	C = CONFIG_N_EMBD,		/* model width */
	H = CONFIG_N_HEAD,		/* attention heads */
	D = C / H,			/* head width */
	F = CONFIG_INTERMEDIATE_SIZE ? CONFIG_INTERMEDIATE_SIZE : 4 * C, /* MLP hidden width */
	V = ROUND_UP(CONFIG_VOCAB_SIZE, 64),	/* padded vocabulary */
	B_MAX = CONFIG_BATCH_SIZE,	/* sequences of a micro-batch */
	T_MAX = CONFIG_BLOCK_SIZE,	/* positions of a sequence */
	WPE = CONFIG_WPE_ROWS ? CONFIG_WPE_ROWS : T_MAX,	/* rows of position embeddings */
	BT = B_MAX * T_MAX,		/* rows of an activation */
	BIAS = IS_ENABLED(CONFIG_LINEAR_BIAS),	/* 0: linear layers have none */
};

#endif
