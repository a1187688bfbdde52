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
 * nearest later one that reads it is its only reader. Its rows stand in a buffer
 * of the caller; the reader gets a const pointer. A reader without an earlier
 * writer gets NULL, which means identity.
 *
 * Taps are declared once, beside the mixers in Kconfig (Documentation/
 * configuration.md); <generated/taps.h> has those of the mixers that are on:
 *
 *	TAPS(TAP)	TAP(name, type, width, step_width, detached) for each
 *	X_TAPS_READ	bits of the taps that mixer X reads in this configuration
 *	X_TAPS_WRITTEN	bits of the taps that it can write
 *
 * A row of a tap is width elements of type (act_t or acc_t), in step step_width. A
 * width of 0 is a description: forward publishes a pointer to host memory, the
 * sub-layer's own struct mixer_args.host. A detached tap's reader writes no gradient.
 *
 * Backward reads what forward saved. Part of it may be cheap to make again from the
 * rest, without a matrix product: a mixer keeps that in a struct of its own
 * (@again_size) and says how (@again). Where RECOMPUTE asks for it, these bytes are
 * shared by all sub-layers and made just before backward; and where it asks for more,
 * forward itself runs a second time, on the same inputs: what it leaves may depend on
 * nothing else.
 */
#ifndef TENON_MIXER_H
#define TENON_MIXER_H

#include <generated/taps.h>

#include "dims.h"
#include "kernels.h"
#include "param.h"

enum {
#define TAP(name, ...) TAP_##name,
	TAPS(TAP)
#undef TAP
	NR_TAPS
};

/** TAP_BIT() - the bit of a tap in masks */
#define TAP_BIT(name) (1u << TAP_##name)

/**
 * struct tap - one kind of tap
 * @name: as declared
 * @elem: bytes of an element
 * @width: elements of a row [b*t][width]; 0: a description on the host
 * @step_width: elements of a row in step, [b][step_width]
 * @detached: no gradient flows back through it
 */
struct tap {
	const char *name;
	size_t elem;
	size_t width, step_width;
	bool detached;
};

extern const struct tap taps[NR_TAPS];

/**
 * struct mixer_args - one call of one sub-layer
 * @b: sequences, at most BATCH_SIZE
 * @t: positions, at most BLOCK_SIZE; 1 in step
 * @layer: number of its layer, 0-based
 * @has: bits: the taps this sub-layer writes that somebody reads (it computes and
 *	owns parameters for no others), and the options of its layer
 * @w: this sub-layer's parameters, the mixer's own struct
 * @dw: their gradients, see GRAD(); the first write of a micro-batch
 *	overwrites, later ones add in a fixed order
 * @act: saved activations, the mixer's own struct. NULL in step.
 * @again: those that @again makes, the mixer's own struct. NULL in step.
 * @host: host_size bytes of this sub-layer's own on the host, kept as long as @act
 * @tmp: scratch shared by all sub-layers: undefined at entry of every call, but
 *	for fill, which finds it as its forward left it
 * @x: input [b*t][C]
 * @y: output [b*t][C], overwritten; never aliases @x
 * @dy: gradient of the output [b*t][C]
 * @dx: gradient of the input [b*t][C], overwritten; never aliases @dy
 * @in: taps read, NULL is identity. The same in forward, fill and backward.
 * @publish: forward: the mixer stores the descriptions it writes here, pointers to @host
 * @out: buffers of the caller for the other taps it writes, NULL where nobody reads:
 *	[b*t][width] in forward and as it left them in backward, [b][step_width] in step
 * @din: backward: gradients of @in, of the tap's type, overwritten by this sub-layer
 *	where not NULL
 * @dout: backward: complete gradients of what was written, NULL where there is
 *	none (not read, or detached)
 * @aux: forward in training: device scalar to which the mixer adds an already
 *	weighted auxiliary loss, whose gradient its backward includes. NULL elsewhere.
 */
struct mixer_args {
	int b, t, layer;
	unsigned int has;
	const void *w;
	grad_t *dw;
	void *act, *again, *host, *tmp;
	const act_t *x;
	act_t *y;
	const act_t *dy;
	act_t *dx;
	const void *in[NR_TAPS];
	const void **publish;
	void *out[NR_TAPS];
	void *din[NR_TAPS];
	const void *dout[NR_TAPS];
	double *aux;
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
 * @size: bytes in all, a multiple of TENSOR_ALIGN
 * @token: of these, bytes of every past token
 */
struct cache_size {
	size_t size, token;
};

/**
 * struct product - matrix products of one shape that a sub-layer executes
 * @m, @n, @k: c[m][n] = a[m][k] b[k][n]
 * @count: how many
 */
struct product {
	int m, n, k, count;
};

/**
 * struct work - operations of a call, as executed; a multiply-add is 2
 * @flops: of everything but normalisation and element-wise work
 * @products: [nr] the matrix products among it
 * @nr: their number
 */
struct work {
	double flops;
	struct product *products;
	int nr;
};

/** work_product() - @count matrix products of m x k by k x n */
void work_product(struct work *w, int m, int n, int k, int count);
/** work_linear() - y[rows][out] = x[rows][in] w^T, or with @backward its dx and dw */
void work_linear(struct work *w, int rows, int out, int in, bool backward);
/** work_pairs() - multiply-adds of @width for each of @pairs (attention, gathers) */
void work_pairs(struct work *w, double pairs, double width);
/**
 * causal_pairs() - pairs u <= t of @b sequences with t - u < @window
 *
 * window = t: all that causal attention visits; window = k: entries of top-k rows.
 */
double causal_pairs(int b, int t, int window);

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
 * @again_size: of further bytes, which @again can make
 * @host_size: bytes of struct mixer_args.host
 * @tmp_size: scratch bytes, shared by all sub-layers
 * @step_tmp_size: scratch bytes of step with BATCH_SIZE sequences
 * @taps_read: taps it reads, X_TAPS_READ
 * @taps_written: taps it can write, X_TAPS_WRITTEN
 * @taps_passing: of both, those whose rows neither its backward nor its metrics looks
 *	at: where the other side says the same they are gone once the reader's forward
 *	has run, and the pointer in @in then only says that there was a writer
 * @form: NULL, or which of its equal forms this build executes, for people
 * @leaks: NULL, or a sentence: which setting makes outputs depend on later
 *	positions and what to choose instead; for training studies only, @step refuses
 * @regroups: which rows are multiplied together depends on what they hold, so that a
 *	change of one may round others differently
 * @aux: it adds to struct mixer_args.aux
 * @options: NULL, or the PARAM_OPTION() bits of a layer
 * @idle: NULL, or how many parameters a token leaves unused
 * @cache: decode state of a sub-layer with these bits, NULL if none
 * @work: operations of one forward (or one backward) call with b sequences of t
 *	positions
 * @work_step: operations of one step of one sequence at position @pos; NULL: those that a
 *	forward over pos + 1 positions executes beyond one over pos
 * @forward: y = f(x)
 * @again: NULL where again_size is 0: struct mixer_args.again from act, x and in, as forward
 *	left it; tmp is free
 * @backward: dx, dw, din from dy, dout; needs the act and again of the same forward
 * @step: one token per sequence, of sequence i at position pos[i] (device, [b],
 *	0-based); its state is at cache + i * cache(has).size. No position is known on
 *	the host. Dies with one line where the configuration cannot decode (the
 *	leaking pool).
 * @fill: right after a forward of b prompts, len[i] (device, [b], 1..t) tokens of
 *	sequence i being real: the state that so many steps would have left. NULL
 *	where there is no state.
 * @metrics: NULL, or statistics of the last forward, called after it or after its
 *	backward: act, again, host, in and x stand as they were, tmp is free, dw is not
 *	touched. Fills @out (at most NR_METRICS), waits for the device, returns how many.
 */
struct mixer {
	const char *name;
	enum mixer_role role;
	const struct param *params;
	int nr_params;
	size_t param_size, act_size, again_size, host_size, tmp_size, step_tmp_size;
	unsigned int taps_read, taps_written, taps_passing;
	const char *form, *leaks;
	bool aux, regroups;
	unsigned int (*options)(int layer);
	size_t (*idle)(unsigned int has);
	struct cache_size (*cache)(unsigned int has);
	void (*work)(struct work *w, int b, int t, unsigned int has, bool backward);
	void (*work_step)(struct work *w, int pos, unsigned int has);
	void (*forward)(const struct mixer_args *a);
	void (*again)(const struct mixer_args *a);
	void (*backward)(const struct mixer_args *a);
	void (*step)(const struct mixer_args *a, void *cache, const int32_t *pos);
	void (*fill)(const struct mixer_args *a, void *cache, const int32_t *len);
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

/** mixer_times() - how many sub-layers of a layer are of this name */
int mixer_times(const char *name, int layer);

#endif
