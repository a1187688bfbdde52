/* SPDX-License-Identifier: MIT */
/**
 * DOC: parameters
 *
 * A module's weights are a plain C struct of real array members; one table
 * beside it adds name, shape, init and decay. All modules stand one behind the
 * other, layer-major, in one flat buffer; gradients, moments and master weights
 * share its element offsets.
 */
#ifndef TENON_PARAM_H
#define TENON_PARAM_H

#include "types.h"

enum param_init {
	INIT_ZERO,
	INIT_ONE,
	INIT_NORMAL,		/* N(0, 0.02) */
	INIT_RESIDUAL,		/* N(0, 0.02 / sqrt(number of sub-layers)) */
	INIT_FANIN,		/* N(0, 1 / sqrt(fan_in)), fan_in in struct param */
};

enum { NO_DECAY, DECAY };

/**
 * struct param - one tensor of a module
 * @name: leaf name in files, e.g. "c_fc.weight"
 * @offset: bytes from the start of the module's struct
 * @ndim: dimensions
 * @dims: shape, row-major; a 0 among them: the tensor is switched off
 * @init: distribution of the initial values
 * @fan_in: for INIT_FANIN
 * @decay: DECAY where weight decay applies
 * @if_read: taps; not 0: the tensor exists only where a later sub-layer reads
 *	one of them. Such tensors stand last in the struct.
 */
struct param {
	const char *name;
	size_t offset;
	int ndim;
	int dims[3];
	enum param_init init;
	int fan_in;
	int decay;
	unsigned int if_read;
};

#define PARAM_NUMEL_1(a) ((size_t)(a))
#define PARAM_NUMEL_2(a, b) ((size_t)(a) * (b))
#define PARAM_NUMEL_3(a, b, c) ((size_t)(a) * (b) * (c))
#define PARAM_NUMEL_PICK(a, b, c, f, ...) f
#define PARAM_NUMEL(...) \
	PARAM_NUMEL_PICK(__VA_ARGS__, PARAM_NUMEL_3, PARAM_NUMEL_2, PARAM_NUMEL_1, )(__VA_ARGS__)

/* 0, or an error at compile time where the table and the struct disagree */
#define PARAM_SAME_SIZE(type, field, ...) \
	(0 * sizeof(char[1 - 2 * (sizeof(((type *)0)->field) != \
				  PARAM_NUMEL(__VA_ARGS__) * sizeof(param_t))]))

/**
 * PARAM() - one table line
 * @type: the struct
 * @field: its member
 * @leaf: name in files
 * @how: enum param_init
 * @fan: fan_in for INIT_FANIN, else 0
 * @dec: DECAY or NO_DECAY
 * @taps: 0, or the taps of which one must be read for the tensor to exist
 */
#define PARAM_IF_READ(type, field, leaf, how, fan, dec, taps, ...)		\
	{ .name = leaf, .offset = offsetof(type, field) +			\
		PARAM_SAME_SIZE(type, field, __VA_ARGS__),			\
	  .ndim = sizeof((int[]){ __VA_ARGS__ }) / sizeof(int),			\
	  .dims = { __VA_ARGS__ }, .init = how, .fan_in = fan, .decay = dec,	\
	  .if_read = taps }
#define PARAM(type, field, leaf, how, fan, dec, ...) \
	PARAM_IF_READ(type, field, leaf, how, fan, dec, 0, __VA_ARGS__)

/**
 * GRAD() - where a tensor's gradient lives
 * @dw: the module's gradients
 * @type: the module's parameter struct
 * @field: the tensor
 *
 * Gradients share element offsets, not bytes, with the parameters.
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
 * @read: taps that a later sub-layer reads
 */
bool param_exists(const struct param *p, unsigned int read);

/**
 * param_numel() - elements of a tensor
 * @p: table line
 */
size_t param_numel(const struct param *p);

/**
 * param_module_elems() - elements a module takes in the flat buffers
 * @params: table
 * @nr: its length
 * @read: taps that a later sub-layer reads
 *
 * Padding included: the end of the last tensor that exists, rounded up to
 * TENSOR_ALIGN bytes.
 */
size_t param_module_elems(const struct param *params, int nr, unsigned int read);

/**
 * param_init() - initial values of a part of a tensor, on the host
 * @e: the tensor
 * @first: first element wanted
 * @n: elements
 * @dst: [n]
 * @seed: run seed
 *
 * Drawn in double, keyed by (seed, hash of the name, element), so that every
 * arch and every configuration start a shared tensor from the same values.
 */
void param_init(const struct param_entry *e, size_t first, size_t n, param_t *dst, uint64_t seed);

#endif
