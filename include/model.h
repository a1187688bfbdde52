/* SPDX-License-Identifier: MIT */
/**
 * DOC: the model
 *
 * embed -> sub-layers (x += mixer(norm(x))) -> norm -> tied head. CONFIG_BLOCK
 * repeated CONFIG_N_LAYER times gives the sub-layers. All device memory is one
 * arena, planned before it is allocated.
 */
#ifndef TENON_MODEL_H
#define TENON_MODEL_H

#include "mixer.h"

enum {
	NR_SUB = NL * CONFIG_BLOCK_LEN,			/* sub-layers */
	HEAD_ROWS = BT < 512 ? BT : 512,		/* rows of logits held at a time */
};

struct embed_param {
	TENSOR param_t wte[V][C];
	TENSOR param_t wpe[T_MAX][C];
};

struct norm_param {
	TENSOR param_t weight[C];
	TENSOR param_t bias[C];
};

/* saved by the stack itself for each norm: the residual stream it read */
struct norm_act {
	TENSOR act_t x[BT][C];
	TENSOR act_t xn[BT][C];
	TENSOR acc_t mean[BT];
	TENSOR acc_t rstd[BT];
};

/**
 * struct sublayer - one mixer with its norm
 * @mixer: its operations
 * @layer: block number, 0-based
 * @norm: first element of its norm_param in the flat buffers
 * @param: first element of its mixer's parameters
 * @elems: elements of its mixer's parameters
 * @cache: its decode state
 * @read: the taps it writes that a later sub-layer reads
 * @from: for each tap bit it reads, the sub-layer that writes it, -1 none
 */
struct sublayer {
	const struct mixer *mixer;
	int layer;
	size_t norm, param, elems;
	struct cache_size cache;
	unsigned int read;
	int from[NR_TAPS];
};

/**
 * enum phase - what an arena is for
 */
enum phase { PHASE_TRAIN, PHASE_EVAL, PHASE_DECODE };

/**
 * struct model - one model and the buffers of one phase
 *
 * Pointers are device memory. PHASE_TRAIN can evaluate as well; PHASE_EVAL has
 * no gradients and keeps activations only as long as a tap may be read;
 * PHASE_DECODE has caches instead.
 */
struct model {
	struct sublayer sub[NR_SUB];
	struct param_entry *entries;	/* every tensor, in buffer order */
	int nr_entries;
	size_t param_elems;		/* of the flat buffers, padding included */
	size_t ln_f;			/* first element of the last norm */
	enum phase phase;

	param_t *w;			/* [param_elems] */
	grad_t *dw;			/* [param_elems], the leaf being written; set by the caller */
	int32_t *tok;			/* [B_MAX][T_MAX + 1] */
	int32_t *order;			/* [2 BT] */
	struct norm_act *norm[NR_SUB + 1];
	void *act[NR_SUB];
	void *tmp;
	act_t *y;			/* [BT][C] a mixer's output; backward: gradient of its input */
	act_t *dx;			/* [BT][C] gradient of the residual stream */
	act_t *logits;			/* [HEAD_ROWS][V] */
	acc_t *row_loss;		/* [BT] */
	double *loss;			/* [1] mean loss of the last call */
	struct tap_grads dtap;		/* one buffer per kind */
	struct taps taps[NR_SUB];	/* what each sub-layer read in the last forward */
	const struct taps *replay;	/* NULL, or [NR_SUB]: detached taps are read from here */

	void *cache[NR_SUB];		/* PHASE_DECODE, from here on */
	struct taps step_out;		/* buffers of tap values */
	act_t *step_x, *step_xn;	/* [sequences][C] */
	acc_t *step_stat;		/* [2][sequences] */
	int sequences;
};

/**
 * struct plan - bytes and operations of a configuration, before anything is allocated
 * @params: tensors' elements that exist
 * @params_published: counting the last layer's unread gate and latent-mix tensors too
 * @bytes_params, @bytes_grads, @bytes_optim, @bytes_act, @bytes_tmp, @bytes_cache:
 *	the arena's parts
 * @bytes_arena: their sum, to the byte what is allocated
 * @cache_token: decode state per past token, all layers, one sequence
 * @cache_const: decode state that does not grow
 * @flops_token: operations per token of a training step (forward and backward) at full t
 * @flops_token_fwd: of a forward
 * @slots: gradient buffers
 */
struct plan {
	uint64_t params, params_published;
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
 * model_init_params() - initial values into m->w; its padding stays as it was allocated
 */
void model_init_params(struct model *m, uint64_t seed);

/**
 * model_forward() - mean loss of one batch into m->loss; asynchronous
 * @tok: host [b][t + 1]
 * @backward: also leaves what model_backward() needs
 *
 * With @backward the head's gradient is computed in the same pass over the logits
 * (chunks of HEAD_ROWS rows), into m->dw and m->y.
 */
void model_forward(struct model *m, const int32_t *tok, int b, int t, bool backward);

/**
 * model_backward() - the gradient of the mean loss of that forward into m->dw
 */
void model_backward(struct model *m, int b, int t);

/**
 * model_logits() - rows of logits of the last forward
 * @row0: first row
 * @n: rows, at most HEAD_ROWS
 *
 * Returns: device [n][V], padded columns minus infinity.
 */
const act_t *model_logits(struct model *m, int row0, int n);

/**
 * model_step() - one token per sequence through the caches
 * @tok: host [b]
 * @pos: their position, 0-based; the cache holds 0..pos-1
 *
 * Returns: device logits [b][V], padded columns minus infinity. b <= HEAD_ROWS.
 */
const act_t *model_step(struct model *m, const int32_t *tok, int b, int pos);

/**
 * model_loss() - wait for the last forward
 *
 * Returns: its mean loss.
 */
double model_loss(struct model *m);

/**
 * model_find() - entry by full name, NULL if there is none
 */
const struct param_entry *model_find(const struct model *m, const char *name);

#endif
