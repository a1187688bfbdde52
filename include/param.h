/* SPDX-License-Identifier: MIT */
/**
 * DOC: parameters
 *
 * A module's weights are a plain C struct of real array members; one table
 * beside it adds name, shape, init and flags. All modules stand one behind the
 * other, layer-major, in one flat buffer of param_t; gradients, moments and master
 * weights share its element offsets.
 */
#ifndef TENON_PARAM_H
#define TENON_PARAM_H

#include "types.h"

enum param_flag {
	NO_DECAY = 0,
	DECAY = 1 << 0,		/* weight decay applies */
	FROZEN = 1 << 1,	/* in checkpoints, but no gradient and no update: dw is not written */
	WIDE = 1 << 2,		/* acc_t in every build: a member of type acc_t */
	INIT_WHOLE = 1 << 3,	/* the init function must see the tensor in one piece */
	BY_SIGN = 1 << 4,	/* with FROZEN: dw is written, its signs move it: struct param.rate */
};

/*
 * Which tensors a module has depends on bits: taps that a later sub-layer reads
 * (1 << TAP_X), and options of its layer (PARAM_OPTION(0), (1), ... as
 * struct mixer.options gives them).
 */
#define PARAM_OPTION(n) (1u << (16 + (n)))

struct param_entry;

/**
 * typedef param_init_fn - initial values of a part of a tensor, on the host
 * @e: the tensor
 * @first: first element wanted; 0 with INIT_WHOLE
 * @n: elements; all with INIT_WHOLE
 * @dst: [n]
 * @seed: run seed
 *
 * Drawn in double, keyed by (seed, hash of the name, element), so that every
 * arch and every configuration start a shared tensor from the same values.
 */
typedef void param_init_fn(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
			   uint64_t seed);

param_init_fn init_zero;
param_init_fn init_one;
param_init_fn init_normal;	/* N(0, 0.02) */
param_init_fn init_residual;	/* N(0, 0.02 / sqrt(number of sub-layers)) */
param_init_fn init_fanin;	/* N(0, 1 / sqrt(fan_in)) */
param_init_fn init_uniform;	/* U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) */
param_init_fn init_xavier;	/* U(-a, a), a = sqrt(6 / (sum of the last two dimensions)) */

/**
 * struct param - one tensor of a module
 * @name: leaf name in files, e.g. "c_fc.weight"
 * @offset: bytes from the start of the module's struct
 * @ndim: dimensions
 * @dims: shape, row-major; a 0 among them: the tensor is switched off
 * @init: its initial values
 * @fan_in: for init_fanin and init_uniform
 * @flags: enum param_flag
 * @need: 0, or bits of which one must be set for the tensor to exist. Such tensors
 *	stand last in the struct.
 * @rate: of a BY_SIGN tensor: after each applied update w -= rate * sign(sum of dw over the
 *	micro-batches of the step)
 */
struct param {
	const char *name;
	size_t offset;
	int ndim;
	int dims[3];
	param_init_fn *init;
	int fan_in;
	unsigned int flags, need;
	double rate;
};

#define PARAM_NUMEL_1(a) ((size_t)(a))
#define PARAM_NUMEL_2(a, b) ((size_t)(a) * (b))
#define PARAM_NUMEL_3(a, b, c) ((size_t)(a) * (b) * (c))
#define PARAM_NUMEL_PICK(a, b, c, f, ...) f
#define PARAM_NUMEL(...) \
	PARAM_NUMEL_PICK(__VA_ARGS__, PARAM_NUMEL_3, PARAM_NUMEL_2, PARAM_NUMEL_1, )(__VA_ARGS__)

/* bytes of an element */
#define PARAM_ELEM(flags) ((flags) & WIDE ? sizeof(acc_t) : sizeof(param_t))

/* 0, or an error at compile time where the table and the struct disagree */
#define PARAM_SAME_SIZE(type, field, flags, ...) \
	(0 * sizeof(char[1 - 2 * (sizeof(((type *)0)->field) != \
				  PARAM_NUMEL(__VA_ARGS__) * PARAM_ELEM(flags))]))

/**
 * PARAM() - one table line
 * @type: the struct
 * @field: its member
 * @leaf: name in files
 * @how: param_init_fn
 * @fan: fan_in for init_fanin and init_uniform, else 0
 * @flag: enum param_flag
 *
 * The shape follows. PARAM_IF() has the bits of which one must be set before it.
 */
#define PARAM_IF(type, field, leaf, how, fan, flag, bits, ...)			\
	{ .name = leaf, .offset = offsetof(type, field) +			\
		PARAM_SAME_SIZE(type, field, flag, __VA_ARGS__),		\
	  .ndim = sizeof((int[]){ __VA_ARGS__ }) / sizeof(int),			\
	  .dims = { __VA_ARGS__ }, .init = how, .fan_in = fan, .flags = flag,	\
	  .need = bits }
#define PARAM(type, field, leaf, how, fan, flag, ...) \
	PARAM_IF(type, field, leaf, how, fan, flag, 0, __VA_ARGS__)

/** PARAM_BY_SIGN() - of acc_t, at first 0, moved by nothing but the signs of dw */
#define PARAM_BY_SIGN(type, field, leaf, step, ...)				\
	{ .name = leaf, .offset = offsetof(type, field) +			\
		PARAM_SAME_SIZE(type, field, WIDE, __VA_ARGS__),		\
	  .ndim = sizeof((int[]){ __VA_ARGS__ }) / sizeof(int),			\
	  .dims = { __VA_ARGS__ }, .init = init_zero,				\
	  .flags = WIDE | FROZEN | BY_SIGN, .rate = step }

/**
 * GRAD() - where a tensor's gradient lives
 * @dw: the module's gradients
 * @type: the module's parameter struct
 * @field: the tensor
 *
 * Gradients share element offsets, not bytes, with the parameters. A WIDE tensor of
 * n elements takes n * sizeof(acc_t) / sizeof(param_t) of them; its gradient stands
 * in the first n.
 */
#define GRAD(dw, type, field) \
	((grad_t *)(dw) + offsetof(type, field) / sizeof(param_t))

/**
 * struct param_entry - one tensor of the whole model
 * @name: full name, e.g. "h.3.mlp.c_fc.weight"
 * @p: its table line
 * @offset: first element in the flat buffers
 * @numel: elements
 */
struct param_entry {
	char name[64];
	const struct param *p;
	size_t offset;
	size_t numel;
};

/**
 * param_exists() - whether a tensor is part of a module
 * @p: table line
 * @has: bits, see PARAM_OPTION()
 */
bool param_exists(const struct param *p, unsigned int has);

/**
 * param_numel() - elements of a tensor
 * @p: table line
 */
size_t param_numel(const struct param *p);

/**
 * param_module_elems() - elements a module takes in the flat buffers
 * @params: table
 * @nr: its length
 * @has: bits, see PARAM_OPTION()
 *
 * Padding included: the end of the last tensor that exists, rounded up to
 * TENSOR_ALIGN bytes.
 */
size_t param_module_elems(const struct param *params, int nr, unsigned int has);

#endif
