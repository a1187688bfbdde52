/* SPDX-License-Identifier: MIT */
/**
 * DOC: the model
 *
 * embed -> sub-layers (x += mixer(norm(x))) -> norm -> head. CONFIG_BLOCK (in the layers
 * of CONFIG_BLOCK_ALT_LAYERS CONFIG_BLOCK_ALT) for each of CONFIG_N_LAYER layers gives
 * the sub-layers. All device memory is one arena, planned before it is allocated.
 */
#ifndef TENON_MODEL_H
#define TENON_MODEL_H

#include "arch.h"
#include "mixer.h"
#include "weights.h"

enum {
	/* sub-layers: CONFIG_BLOCK_ALT_LAYERS_NR layers are of the other block */
	NR_SUB = (NL - CONFIG_BLOCK_ALT_LAYERS_NR) * CONFIG_BLOCK_LEN +
		 CONFIG_BLOCK_ALT_LAYERS_NR * CONFIG_BLOCK_ALT_LEN,
	/* rows of logits held at a time in training, and as acc_t for people */
	HEAD_ROWS = BT < CONFIG_HEAD_ROWS ? BT : CONFIG_HEAD_ROWS,
	LOGIT_ROWS = HEAD_ROWS * sizeof(act_t) < sizeof(acc_t) ? 1 :
		     HEAD_ROWS * sizeof(act_t) / sizeof(acc_t),
	/* of these, rows of likeliest tokens */
	BEST_ROWS = IS_ENABLED(CONFIG_DATA_SYNTHETIC) ? LOGIT_ROWS : 0,
	RMS = IS_ENABLED(CONFIG_NORM_RMSNORM),
	TIED = IS_ENABLED(CONFIG_HEAD_TIED),
	POSITIONS = IS_ENABLED(CONFIG_LEARNED_POSITIONS),
	DROPOUT = CONFIG_RESID_DROPOUT_NONZERO,
};

struct embed_param {
	TENSOR param_t wte[V][C];
	TENSOR param_t wpe[POSITIONS * WPE][C];
};

struct norm_param {
	TENSOR acc_t weight[C];
	TENSOR acc_t bias[!RMS * C];
};

struct head_param {
	TENSOR param_t lm_head[!TIED * V][C];
};

struct norm_stat {
	TENSOR acc_t mean[!RMS * BT];
	TENSOR acc_t rstd[BT];
};

/* what goes up once per micro-batch */
struct input {
	int32_t tok[BT];		/* [b][t] */
	int32_t target[BT];		/* [b][t], -1: not scored */
	int32_t order[BT];		/* rows stably sorted by token */
	int32_t scored;			/* targets that are, at least 1 */
	struct draw draw;		/* of what drops out */
};

/**
 * struct batch - tokens on the host
 * @b: sequences, at most BATCH_SIZE
 * @t: positions, at most BLOCK_SIZE
 * @tok: [b][t] below VOCAB_SIZE
 * @target: [b][t] what each position should predict, -1: it is not scored
 */
struct batch {
	int b, t;
	const int32_t *tok, *target;
};

/**
 * struct sublayer - one mixer with its norm
 * @mixer: its operations
 * @layer: block number, 0-based
 * @nth: place in its block, 0-based
 * @norm: first element of its norm_param in the flat buffers
 * @param: first element of its mixer's parameters
 * @elems: elements of its mixer's parameters
 * @stream: of what drops out of its output
 * @cache: its decode state
 * @has: the taps it writes that a later sub-layer reads, and its layer's options
 * @from: for each tap it reads, the sub-layer that writes it, -1 none
 * @first: first sub-layer of its segment: the layers, mostly one, that RECOMPUTE_BLOCK
 *	runs again together, since no description crosses from one segment to another
 * @far: of @has, taps that are read in a later segment
 * @passing: of @has, taps that nobody looks at once their reader's forward has run
 */
struct sublayer {
	const struct mixer *mixer;
	int layer, nth;
	size_t norm, param, elems;
	uint64_t stream;
	struct cache_size cache;
	unsigned int has, far, passing;
	int from[NR_TAPS], first;
};

/**
 * enum phase - what an arena is for
 */
enum phase { PHASE_TRAIN, PHASE_EVAL, PHASE_DECODE };

/**
 * enum recompute - what backward makes again instead of finding it
 * @RECOMPUTE_NONE: nothing
 * @RECOMPUTE_ACTIVATIONS: outputs of norms, and what a mixer's again makes
 * @RECOMPUTE_BLOCK: everything but a segment's input and the taps that lead into it.
 *	Chen et al. 2016, arXiv 1604.06174.
 */
enum recompute { RECOMPUTE_NONE, RECOMPUTE_ACTIVATIONS, RECOMPUTE_BLOCK, NR_RECOMPUTE };

/**
 * struct tap_values - values of every tap at one place of the stack
 */
struct tap_values {
	const void *value[NR_TAPS];
};

/**
 * struct model - one model and the buffers of one phase
 *
 * Pointers are device memory. PHASE_TRAIN can evaluate as well; PHASE_EVAL has
 * no gradients and keeps activations only as long as a tap may be read;
 * PHASE_DECODE has that for prompts, and caches.
 */
struct model {
	struct sublayer sub[NR_SUB];
	struct param_entry *entries;	/* every tensor, in buffer order */
	int nr_entries;
	size_t param_elems;		/* of the flat buffers, padding included */
	size_t ln_f, head;		/* first elements of the last norm and of an untied head */
	enum phase phase;
	enum recompute recompute;	/* as configured; tests set it before they place */
	int b, t;			/* of the batch that was loaded */
	bool drops;			/* model_draw() was called */

	param_t *w;			/* [param_elems] */
	grad_t *stage;			/* [PIECE] where weights are rounded copies */
	grad_t *dw;			/* [param_elems], the leaf being written; set by the caller */
	struct input *input;
	act_t *x[NR_SUB + 1], *xn[NR_SUB + 1];	/* [BT][C] what each norm reads and gives */
	struct norm_stat *stat[NR_SUB + 1];
	void *act[NR_SUB], *again[NR_SUB];
	void *tap[NR_SUB][NR_TAPS];	/* [BT][width] rows that each sub-layer writes */
	void *host[NR_SUB];		/* host memory, beside act */
	void *tmp;			/* scratch of mixers; the same memory: */
	void *embed_scratch;
	act_t *logits;			/* [HEAD_ROWS][V], or [LOGIT_ROWS][V] acc_t */
	act_t *y;			/* [BT][C] a mixer's output; backward: gradient of its input */
	act_t *dx;			/* [BT][C] gradient of the residual stream */
	act_t *dy;			/* [BT][C] with dropout: of a mixer's output */
	acc_t *row_loss;		/* [BT] */
	int32_t *best;			/* [BEST_ROWS] */
	double *loss;			/* [1] mean cross-entropy of the last call */
	double *aux;			/* [2] sum of the auxiliary losses of the last call; of what ran again */
	void *dtap[NR_TAPS];		/* one gradient buffer per kind, NULL: none */
	struct tap_values taps[NR_SUB];	/* what each sub-layer read in the last forward */
	const struct tap_values *replay; /* NULL, or [NR_SUB]: detached taps are read from here */

	void *cache[NR_SUB];		/* PHASE_DECODE, from here on */
	void *step_tap[NR_TAPS];	/* buffers of tap values */
	act_t *step_x, *step_xn;	/* [sequences][C] */
	acc_t *step_stat;		/* [2][sequences] */
	acc_t *step_logits;		/* [sequences][V] */
	int32_t *step_tok, *step_pos;	/* [sequences]; of a fill, lengths */
	int sequences;
	struct arch_graph step[B_MAX];	/* by number of sequences */
};

/**
 * struct plan - bytes and operations of a configuration, before anything is allocated
 * @params: tensors' elements that exist
 * @params_active: those that a token uses
 * @params_published: counting the last layer's unread gate and latent-mix tensors too
 * @bytes_params, @bytes_grads, @bytes_optim, @bytes_act, @bytes_tmp, @bytes_cache:
 *	the arena's parts; @bytes_tmp has the libraries' workspace in it
 * @bytes_arena: their sum, to the byte what is allocated
 * @cache_token: decode state per past token, all layers, one sequence
 * @cache_const: decode state that does not grow
 * @flops_token: operations per token of a training step (forward and backward) at full t
 * @flops_token_fwd: of a forward
 * @slots: gradient buffers
 */
struct plan {
	uint64_t params, params_active, params_published;
	size_t bytes_params, bytes_grads, bytes_optim, bytes_act, bytes_tmp, bytes_cache;
	size_t bytes_arena;
	size_t cache_token, cache_const;
	double flops_token, flops_token_fwd;
	int slots;
};

/**
 * model_layout() - sub-layers, wiring, names and offsets; allocates nothing on the device
 * @m: zeroed
 *
 * Dies where BLOCK names an unknown mixer or a tap has two readers.
 */
void model_layout(struct model *m);

/**
 * model_plan() - what a phase needs
 * @m: laid out
 * @p: result
 * @phase: train includes gradient slots and moments
 * @sequences: of PHASE_DECODE
 */
void model_plan(const struct model *m, struct plan *p, enum phase phase, int sequences);

/** plan_refuse() - die where a plan for training does not fit, naming the symbols to lower */
void plan_refuse(const struct plan *p);

/**
 * model_place() - point every buffer into an arena
 * @m: laid out
 * @arena: device memory of the size that model_plan() gave, or NULL to measure
 * @phase: what for
 * @sequences: of PHASE_DECODE
 * @extra: bytes the caller wants behind the model's (gradient slots, moments)
 * @extra_at: gets where they start, may be NULL
 *
 * Returns: bytes used in all.
 */
size_t model_place(struct model *m, void *arena, enum phase phase, int sequences, size_t extra,
		   void **extra_at);

/** model_act_size() - of that, the activations saved for backward; clobbers @m's pointers */
size_t model_act_size(struct model *m, enum phase phase);

/**
 * model_init_params() - initial values: master weights of float, and m->w from them
 * @master: [param_elems] of the device, or NULL where there are none (param_t is grad_t,
 *	or the caller keeps no masters)
 *
 * Padding stays as it was allocated.
 */
void model_init_params(struct model *m, grad_t *master, uint64_t seed);

/**
 * model_load() - a batch goes up; asynchronous, @x is free when it returns
 */
void model_load(struct model *m, const struct batch *x);

/**
 * model_draw() - from now on what RESID_DROPOUT says drops out of forwards for backward
 * @seed: of the run
 * @micro: number of the micro-batch, over all ranks
 *
 * Asynchronous. Without it nothing does: gradients of dumps are those of the whole model.
 */
void model_draw(struct model *m, uint64_t seed, int64_t micro);

/**
 * model_forward() - mean loss over the scored positions of the loaded batch into
 * m->loss; asynchronous
 * @backward: also leaves what model_backward() needs, and m->aux
 *
 * With @backward the head's gradient is computed in the same pass over the logits
 * (chunks of HEAD_ROWS rows), into m->dw and m->y. Starts kernels and nothing else:
 * can be recorded by arch_replay() together with model_backward().
 */
void model_forward(struct model *m, bool backward);

/**
 * typedef grad_ready_fn - elements [offset, offset + n) of the leaf are complete
 *
 * Ranges come in the order of backward and cover every element once.
 */
typedef void grad_ready_fn(void *ctx, size_t offset, size_t n);

/**
 * model_backward() - the gradient of the mean loss (and the auxiliary losses) of that
 * forward into m->dw
 * @ready: NULL, or told of each range
 * @ctx: for @ready
 *
 * Tied, wte's gradient is one leaf: the head's part by chunks, then the embedding's.
 */
void model_backward(struct model *m, grad_ready_fn *ready, void *ctx);

/**
 * model_logits() - rows of logits of the last forward
 * @row0: first row
 * @n: rows, at most LOGIT_ROWS
 *
 * Returns: device [n][V], padded columns minus infinity, until the next call.
 */
const acc_t *model_logits(struct model *m, int row0, int n);

/**
 * model_best() - the likeliest token of rows of the last forward; only where data is drawn
 * @row0: first row
 * @n: rows, at most BEST_ROWS
 *
 * Returns: device [n], of equals the smallest, until the next call.
 */
const int32_t *model_best(struct model *m, int row0, int n);

/**
 * model_row_loss() - loss of each position of the last forward, 0 where it is not scored
 *
 * Returns: device [b][t].
 */
const acc_t *model_row_loss(const struct model *m);

/**
 * model_loss() - wait for the last forward
 *
 * Returns: its mean loss, without auxiliary losses.
 */
double model_loss(struct model *m);

/** model_has_aux() - whether a mixer of this model adds auxiliary losses */
bool model_has_aux(const struct model *m);

/**
 * model_metrics() - statistics of one sub-layer, of the last forward
 * @s: number of the sub-layer
 * @out: [NR_METRICS]
 *
 * Not between a forward that is for backward and that backward. Waits. Returns: how many,
 * 0 where the mixer has none.
 */
int model_metrics(const struct model *m, int s, struct metric *out);

/**
 * model_fill() - prompts through the forward into the caches
 * @x: b prompts in rows of t; @x->target is not used
 * @len: host [b] real tokens of each, 1..t; the tokens behind them are anything below
 *	VOCAB_SIZE
 *
 * Returns: device logits [b][V] behind each prompt, padded columns minus infinity.
 */
const acc_t *model_fill(struct model *m, const struct batch *x, const int32_t *len);

/**
 * model_step() - one token per sequence through the caches
 * @tok: host [b]
 * @pos: host [b] their positions, 0-based; the cache of i holds 0..pos[i] - 1
 *
 * Returns: device logits [b][V], padded columns minus infinity. b <= m->sequences.
 */
const acc_t *model_step(struct model *m, const int32_t *tok, const int32_t *pos, int b);

/**
 * model_work() - operations of sub-layer @s, or with NR_SUB those of the head
 * @w: added to
 */
void model_work(const struct model *m, int s, int b, int t, bool backward, struct work *w);

#endif
