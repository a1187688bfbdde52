/* SPDX-License-Identifier: MIT */
/**
 * DOC: mixers
 *
 * A model is embed, then N x (x += mixer(norm(x))), norm, head. A mixer is one
 * file ending in one const ops table, registered through a linker section and
 * found by the names in CONFIG_BLOCK. The residual add and the norms are not
 * its job.
 *
 * Taps carry what crosses a mixer boundary. One sub-layer writes a tap, the
 * nearest later one that reads it is its only reader. The value lives in the
 * writer's saved activations until that sub-layer's backward has run; the
 * reader gets a const pointer. A reader without an earlier writer gets NULL,
 * which means identity.
 */
#ifndef TENON_MIXER_H
#define TENON_MIXER_H

#include "kernels.h"
#include "param.h"

enum {
	TAP_HEAD_GATE = 1 << 0,	 /* gamma [b*t][H], the factor of each head */
	TAP_LATENT = 1 << 1,	 /* keys [b*t][L] of this layer */
	TAP_LATENT_MIX = 1 << 2, /* c [b*t][L], added to the next layer's keys */
	TAP_ROUTE = 1 << 3,	 /* struct route, always detached */
	NR_TAPS = 4,

	/* taps whose reader writes no gradient */
	TAPS_DETACHED = TAP_ROUTE |
		(IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_DETACH) ? TAP_LATENT : 0),
	/* row sets of TAP_ROUTE: heads averaged, or each its own; 0 without it */
	ROUTE_ROWS = !IS_ENABLED(CONFIG_RA_MLA_MLP_CROSS_TOKEN) ? 0 :
		IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE) ? 1 : H,
};

/**
 * struct taps - values that cross a boundary
 * @head_gate: [b*t][H] or NULL
 * @latent: [b*t][L] or NULL
 * @latent_mix: [b*t][L] or NULL
 * @route: attention weights to be recomputed, or its topk lists; valid where
 *	@has_route
 * @has_route: @route is set
 */
struct taps {
	const act_t *head_gate, *latent, *latent_mix;
	struct route route;
	bool has_route;
};

/**
 * struct tap_grads - gradients of tap values
 * @head_gate: [b*t][H] or NULL
 * @latent: [b*t][L] or NULL (detached)
 * @latent_mix: [b*t][L] or NULL
 */
struct tap_grads {
	act_t *head_gate, *latent, *latent_mix;
};

/**
 * struct mixer_args - one call of one sub-layer
 * @b: sequences, at most BATCH_SIZE
 * @t: positions, at most BLOCK_SIZE; 1 in step
 * @read: the taps this sub-layer writes that somebody reads; it computes and
 *	owns parameters for no others
 * @w: this sub-layer's parameters, the mixer's own struct
 * @dw: their gradients, see GRAD(); the first write of a micro-batch
 *	overwrites, later ones add in a fixed order
 * @act: saved activations, the mixer's own struct. NULL in step.
 * @tmp: scratch shared by all sub-layers: undefined at entry of every call
 * @x: input [b*t][C]
 * @y: output [b*t][C], overwritten; never aliases @x
 * @dy: gradient of the output [b*t][C]
 * @dx: gradient of the input [b*t][C], overwritten; never aliases @dy
 * @in: taps read, NULL members are identity. The same in forward and backward.
 * @out: taps written. forward: the mixer stores pointers into @act here.
 *	step: the caller has stored buffers for b rows (head_gate, latent,
 *	latent_mix; route.row [b][ROUTE_ROWS][BLOCK_SIZE]) and the mixer fills them.
 * @din: backward: gradients of @in, overwritten by this sub-layer where not NULL
 * @dout: backward: complete gradients of what was written, NULL where there is
 *	none (not read, or detached)
 */
struct mixer_args {
	int b, t;
	unsigned int read;
	const void *w;
	grad_t *dw;
	void *act, *tmp;
	const act_t *x;
	act_t *y;
	const act_t *dy;
	act_t *dx;
	struct taps in;
	struct taps *out;
	struct tap_grads din;
	struct tap_grads dout;
};

/**
 * struct metric - one statistic of a sub-layer, for metrics.jsonl
 * @name: static storage
 * @value: what it is
 */
struct metric {
	const char *name;
	double value;
};

/**
 * struct cache_size - decode state of one sub-layer and sequence
 * @size: bytes in all
 * @token: of these, bytes of every past token
 */
struct cache_size {
	size_t size, token;
};

enum { NR_METRICS = 8 };	/* most that one sub-layer gives */

enum mixer_role { ROLE_ATTN, ROLE_MLP };	/* "attn." or "mlp." in names */

/**
 * struct mixer - operations of a sub-layer
 * @name: as written in CONFIG_BLOCK
 * @role: token mixer or channel mixer
 * @params: table of its parameters
 * @nr_params: lines of the table
 * @param_size: sizeof its parameter struct
 * @act_size: bytes saved from forward to backward, per sub-layer at capacity
 * @tmp_size: scratch bytes, shared by all sub-layers
 * @step_tmp_size: scratch bytes of step with BATCH_SIZE sequences
 * @cache: decode state of a sub-layer whose taps @read are read, NULL if none
 * @taps_read: taps it reads
 * @taps_written: taps it can write
 * @form: NULL, or which of its equal forms this build executes, for people
 * @leaks: NULL, or a sentence: which setting makes outputs depend on later
 *	positions and what to choose instead; for training studies only, @step refuses
 * @flops: floating point operations of one forward call with b sequences of t
 *	positions, as executed (a multiply-add is 2), without normalisation and
 *	element-wise work; backward is @flops_bwd
 * @flops_bwd: the same for backward
 * @forward: y = f(x)
 * @backward: dx, dw, din from dy, dout; needs the act of the same forward
 * @step: one token per sequence at position @pos (0-based); state of sequence
 *	i at cache + i * cache(read).size. Dies with one line where the configuration
 *	cannot decode (the leaking pool).
 * @metrics: NULL, or statistics of the last forward, called after it or after its
 *	backward: act, in and x stand as they were, tmp is free, dw is not touched.
 *	Fills @out (at most NR_METRICS), waits for the device, returns how many.
 */
struct mixer {
	const char *name;
	enum mixer_role role;
	const struct param *params;
	int nr_params;
	size_t param_size, act_size, tmp_size, step_tmp_size;
	unsigned int taps_read, taps_written;
	const char *form, *leaks;
	struct cache_size (*cache)(unsigned int read);
	double (*flops)(int b, int t, unsigned int read);
	double (*flops_bwd)(int b, int t, unsigned int read);
	void (*forward)(const struct mixer_args *a);
	void (*backward)(const struct mixer_args *a);
	void (*step)(const struct mixer_args *a, void *cache, int pos);
	int (*metrics)(const struct mixer_args *a, struct metric *out);
};

/**
 * MIXER_REGISTER() - make a mixer known by its name
 * @ops: a const struct mixer
 */
#define MIXER_REGISTER(ops) \
	static const struct mixer *const ops##_entry \
	__attribute__((used, section("tenon_mixers"))) = &ops

extern const struct mixer *const __start_tenon_mixers[];
extern const struct mixer *const __stop_tenon_mixers[];

/**
 * mixer_find() - look a mixer up
 * @name: as in CONFIG_BLOCK
 *
 * Returns: the ops, or NULL.
 */
const struct mixer *mixer_find(const char *name);

#endif
