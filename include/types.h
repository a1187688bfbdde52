/* SPDX-License-Identifier: MIT */
/**
 * DOC: number types
 *
 * act_t    activations           float (REAL_TF32 too), double with REAL_DOUBLE, bf16 with
 *                               REAL_BF16
 * param_t  parameters            the same
 * grad_t   gradients, moments, master weights   float (double with REAL_DOUBLE)
 * acc_t    what must not be rounded to act_t: statistics of norms, log-sum-exp,
 *          factors of heads, routing weights, running sums, logits for people:
 *          float (double with REAL_DOUBLE)
 *
 * Outside arch/ act_t and param_t are opaque: copied, pointed at, never
 * calculated with.
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
#define ACT_NAME (IS_ENABLED(CONFIG_REAL_TF32) ? "TF32" : "F32")
#endif

#define ROUND_UP(x, to) (((x) + (to) - 1) / (to) * (to))

/* Every tensor in a parameter, activation or cache struct starts here. */
#define TENSOR_ALIGN 256
#define TENSOR __attribute__((aligned(TENSOR_ALIGN)))

#endif
