/* SPDX-License-Identifier: MIT */
/**
 * DOC: number types and dimensions
 *
 * act_t    activations           float, double with REAL_DOUBLE, bf16 with REAL_BF16
 * param_t  parameters            the same
 * grad_t   gradients, moments, master weights   float (double with REAL_DOUBLE)
 * acc_t    what must not be rounded to act_t: statistics of norms, log-sum-exp,
 *          factors of heads, routing weights, running sums, logits for people:
 *          float (double with REAL_DOUBLE)
 *
 * Outside arch/ act_t and param_t are opaque: copied, pointed at, never
 * calculated with.
 *
 * Dimensions carry the letters of the field. BATCH_SIZE and BLOCK_SIZE are
 * capacities: every entry point takes the actual b and t.
 */
#ifndef TENON_TYPES_H
#define TENON_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined CONFIG_REAL_DOUBLE
typedef double act_t, param_t, grad_t, acc_t;
#define REAL_NAME "F64"		/* of what is written: masters, gradients, logits */
#define ACT_NAME "F64"		/* of activations and parameters */
#elif defined CONFIG_REAL_BF16
typedef struct { uint16_t bits; } act_t, param_t;
typedef float grad_t, acc_t;
#define REAL_NAME "F32"
#define ACT_NAME "BF16"
#else
typedef float act_t, param_t, grad_t, acc_t;
#define REAL_NAME "F32"
#define ACT_NAME "F32"
#endif

#define ROUND_UP(x, to) (((x) + (to) - 1) / (to) * (to))

/* Every tensor in a parameter, activation or cache struct starts here. */
#define TENSOR_ALIGN 256
#define TENSOR __attribute__((aligned(TENSOR_ALIGN)))

enum {
	NL = CONFIG_N_LAYER,
	C = CONFIG_N_EMBD,		/* model width */
	H = CONFIG_N_HEAD,		/* attention heads */
	D = C / H,			/* head width */
	F = CONFIG_INTERMEDIATE_SIZE ? CONFIG_INTERMEDIATE_SIZE : 4 * C, /* MLP hidden width */
	V = ROUND_UP(CONFIG_VOCAB_SIZE, 64),	/* padded vocabulary */
	B_MAX = CONFIG_BATCH_SIZE,	/* sequences of a micro-batch */
	T_MAX = CONFIG_BLOCK_SIZE,	/* positions of a sequence */
	BT = B_MAX * T_MAX,		/* rows of an activation */
	BIAS = IS_ENABLED(CONFIG_LINEAR_BIAS),	/* 0: linear layers have none */
};

#endif
