/* SPDX-License-Identifier: MIT */
/**
 * DOC: optimizer, schedule and the accumulation tree
 *
 * One optimizer per binary: train/adamw.c or train/adamw_spam.c.
 */
#ifndef TENON_OPTIM_H
#define TENON_OPTIM_H

#include "model.h"

/**
 * struct optim - an optimizer's buffers, on the device
 * @m: first moments [param_elems]
 * @v: second moments [param_elems]
 * @partial: sums of squares, one per OPTIM_CHUNK elements
 * @ranges: decay of every element
 * @nr_ranges: its length
 * @state: persistent scalars
 * @lr: learning rate of the running update
 * @loss: mean loss of the running step
 */
struct optim {
	grad_t *m, *v;
	double *partial;
	struct optim_range *ranges;
	int nr_ranges;
	struct optim_state *state;
	double *lr, *loss;
};

/** optim_bytes() - arena bytes for a model of @elems elements and @entries tensors */
size_t optim_bytes(size_t elems, int entries);

/** optim_place() - point @o into optim_bytes() of zeroed device memory; fills the ranges */
void optim_place(struct optim *o, const struct model *m, void *mem);

/**
 * optim_update() - one update from summed gradients; asynchronous
 * @grad: sums over the step's micro-batches [param_elems]; may be changed (SPAM clip)
 * @lr: from the schedule
 * @loss: the step's mean loss, host
 */
void optim_update(struct optim *o, struct model *m, grad_t *grad, double lr, double loss);

/** optim_get() - wait; copy the state to the host */
void optim_get(const struct optim *o, struct optim_state *st);

/** optim_nonfinite() - name of the first tensor with a non-finite value in @grad, or NULL */
const char *optim_nonfinite(const struct optim *o, const struct model *m, const grad_t *grad);

/**
 * schedule_lr() - learning rate of update @i of @n, 0-based
 */
double schedule_lr(int64_t i, int64_t n);

/* ---- accumulation: a binary counter of gradient buffers ------------------- */

enum { ACCUM_MAX_SLOTS = 32 };

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

/** accum_slots() - buffers for @n leaves a step */
int accum_slots(int n);
/** accum_place() - @nr buffers of @elems from zeroed device memory */
void accum_place(struct accum *a, int nr, size_t elems, grad_t *mem);
/** accum_leaf() - a free buffer to write the next leaf into */
grad_t *accum_leaf(struct accum *a);
/** accum_push() - the leaf from accum_leaf() is complete: merge older + newer */
void accum_push(struct accum *a, grad_t *leaf);
/** accum_fold() - fold the slots from small to large; the counter is empty after it */
grad_t *accum_fold(struct accum *a);
/** accum_drop() - forget an unfinished accumulation */
void accum_drop(struct accum *a);

#endif
