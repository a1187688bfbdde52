/* SPDX-License-Identifier: MIT */
/**
 * DOC: optimizer, schedule and the accumulation tree
 *
 * One optimizer per binary, a link-time choice: a file of train/ that ends in the one
 * definition of optim_rule. train/optim.c does what all of them share.
 */
#ifndef TENON_OPTIM_H
#define TENON_OPTIM_H

#include "arch.h"
#include "kernels_optim.h"
#include "weights.h"

enum {
	OPTIM_BUFFERS = 4,		/* most that an optimizer keeps per element */
	OPTIM_STATE_MAX = 4096,		/* bytes of its scalars */
	ACCUM_MAX_SLOTS = 32,		/* gradient buffers */
	/* masters: where weights are rounded copies */
	OPTIM_MASTER = sizeof(param_t) != sizeof(grad_t),
};

/**
 * struct optim_scalar - one of an optimizer's scalars in state.json
 * @name: after "optim."
 * @offset: in the optimizer's state
 * @count: 1, or elements of an array
 * @real: double, else int64_t
 */
struct optim_scalar {
	const char *name;
	size_t offset;
	int count;
	bool real;
};

#define OPTIM_INT(type, field) { #field, offsetof(type, field), 1, false }
#define OPTIM_REAL(type, field) { #field, offsetof(type, field), 1, true }
#define OPTIM_REALS(type, field) \
	{ #field, offsetof(type, field), sizeof(((type *)0)->field) / sizeof(double), true }

/* The optimizer's scalars on the host; its own struct begins with struct optim_state. */
union optim_memory {
	struct optim_state common;
	unsigned char bytes[OPTIM_STATE_MAX];
};

/**
 * struct optim - an optimizer's buffers, on the device
 * @buf: of optim_rule.buffers, [span.n] each
 * @master: master weights [span.n], NULL where weights are their own (OPTIM_MASTER)
 * @state: optim_rule.state_size bytes
 * @partial: sums of squares, one per OPTIM_CHUNK elements of the model
 * @bad: first element of each chunk that was not finite, -1 none
 * @span: the elements that this rank owns
 * @lr: learning rate of the running update
 * @loss: [2] mean loss and mean auxiliary loss of the running step
 * @losses: [2][GRADIENT_ACCUMULATION] both of every micro-batch, over all ranks
 * @own: host [ranks + 1] owned elements
 * @own_weights, @own_partial, @own_bad, @own_losses: the same bounds in bytes of the
 *	buffers that are gathered
 * @graph: an update, by the gradient buffer that it reads
 */
struct optim {
	grad_t *buf[OPTIM_BUFFERS];
	grad_t *master;
	void *state;
	double *partial;
	int32_t *bad;
	struct optim_span span;
	double *lr, *loss, *losses;
	size_t *own, *own_weights, *own_partial, *own_bad, *own_losses;
	struct {
		const grad_t *grad;
		struct arch_graph graph;
	} graph[ACCUM_MAX_SLOTS];
};

/**
 * struct optim_rule - what one optimizer is
 * @buffers: [nr_buffers] prefixes of tensors' names in optim.safetensors: one number
 *	per element, 0 at first
 * @nr_buffers: at most OPTIM_BUFFERS
 * @scalars: its own, besides those of struct optim_state
 * @nr_scalars: their number
 * @state_size: bytes of its struct, which begins with struct optim_state; 0 at first
 * @norm: o->partial and o->bad of the span
 * @update: decide and update, after k_optim_guard()
 *
 * @grad is a whole buffer of sums over the micro-batches, complete where the span is.
 * Both start kernels and nothing else; what changes from step to step is read from o->lr
 * and the state.
 */
struct optim_rule {
	const char *const *buffers;
	int nr_buffers;
	const struct optim_scalar *scalars;
	int nr_scalars;
	size_t state_size;
	void (*norm)(struct optim *o, const struct model *m, const grad_t *grad);
	void (*update)(struct optim *o, struct model *m, const grad_t *grad);
};

extern const struct optim_rule optim_rule;

/** optim_bytes() - arena bytes for a model of @elems elements and @entries tensors */
size_t optim_bytes(size_t elems, int entries);

/** optim_place() - point @o into optim_bytes() of zeroed device memory; fills the ranges */
void optim_place(struct optim *o, const struct model *m, void *mem);

/**
 * optim_update() - one update from this rank's summed gradients; asynchronous
 * @grad: sums over its micro-batches [param_elems]; at most ACCUM_MAX_SLOTS different
 *	buffers in a run
 * @lr: from the schedule
 *
 * Reads the losses of its micro-batches in o->losses; sums both over the ranks.
 */
void optim_update(struct optim *o, struct model *m, grad_t *grad, double lr);

/** optim_get_later() - state and o->loss to the host, as arch_get_later() does */
void optim_get_later(const struct optim *o, union optim_memory *st, double loss[2]);

/** optim_put() - the scalars of a checkpoint into the optimizer */
void optim_put(struct optim *o, const union optim_memory *st);

/**
 * optim_nonfinite() - name of the first tensor whose gradient was not finite in the last
 * update, or NULL; waits
 */
const char *optim_nonfinite(const struct optim *o, const struct model *m);

/**
 * schedule_lr() - learning rate of update @i of @n, 0-based
 */
double schedule_lr(int64_t i, int64_t n);

/* ---- accumulation: a binary counter of gradient buffers ------------------- */

/**
 * struct accum - slot j holds the sum of 2^j consecutive leaves
 * @buf: the buffers
 * @nr: how many, floor(log2 n) + 1
 * @slot: buffer number in slot j, -1 empty
 * @elems: elements of a buffer
 */
struct accum {
	grad_t *buf[ACCUM_MAX_SLOTS];
	int nr;
	int slot[ACCUM_MAX_SLOTS];
	size_t elems;
};

/**
 * struct accum_merge - buffer @older += buffer @newer, which is free after it
 */
struct accum_merge {
	int older, newer;
};

/** accum_slots() - buffers for @n leaves a step */
int accum_slots(int n);
/** accum_place() - @nr buffers of @elems from zeroed device memory */
void accum_place(struct accum *a, int nr, size_t elems, grad_t *mem);
/** accum_leaf() - number of a free buffer to write the next leaf into */
int accum_leaf(const struct accum *a);
/**
 * accum_push() - the leaf in buffer @leaf takes its place in the counter
 * @merges: gets what is to be merged, in this order
 *
 * Bookkeeping alone: accum_merge() computes. Returns: how many merges.
 */
int accum_push(struct accum *a, int leaf, struct accum_merge merges[ACCUM_MAX_SLOTS]);
/**
 * accum_fold() - as accum_push(): the slots from small to large into one; the counter is
 * empty after it
 * @sum: gets the buffer that holds the sum after the merges
 */
int accum_fold(struct accum *a, struct accum_merge merges[ACCUM_MAX_SLOTS], int *sum);
/**
 * accum_merge() - elements [offset, offset + n) of one merge; asynchronous
 *
 * Ranges may be merged as they get complete, in any order: each element's sum depends
 * on the order of its merges alone.
 */
void accum_merge(const struct accum *a, struct accum_merge x, size_t offset, size_t n);
/** accum_drop() - forget an unfinished accumulation */
void accum_drop(struct accum *a);

#endif
