/* SPDX-License-Identifier: MIT */
/**
 * DOC: optimizer kernels
 *
 * The rules of kernels.h hold, except for struct adam_hyper, struct optim_span and what
 * they point at on the host: host memory, read before the call returns. struct
 * adam_hyper is constant over a run.
 */
#ifndef TENON_KERNELS_OPTIM_H
#define TENON_KERNELS_OPTIM_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OPTIM_CHUNK 65536	/* elements of one partial sum of squares */

/**
 * struct optim_range - one tensor in the flat buffers
 * @offset: first element
 * @numel: elements
 * @decay: weight decay, 0 where none applies
 * @frozen: it is not trained, whatever its gradient holds
 * @rate: of a frozen one: an applied update subtracts this much times the sign of the gradient
 *	(on a cpu)
 * @wide: its weights are acc_t, numel of them, from element offset of the weights on;
 *	gradients, moments and masters are indexed as everywhere, from offset on
 *
 * In ascending order. Padding belongs to no range, and no kernel reads or writes it.
 */
struct optim_range {
	size_t offset, numel;
	double decay;
	int32_t frozen, wide;
	double rate;
};

/**
 * struct optim_span - elements [offset, offset + n) of the flat buffers
 * @offset: first element, a multiple of OPTIM_CHUNK
 * @n: elements
 * @ranges: [nr] of the whole model, in device memory
 * @nr: its length
 */
struct optim_span {
	size_t offset, n;
	const struct optim_range *ranges;
	int nr;
};

/**
 * struct optim_state - what every optimizer keeps on the device and in checkpoints
 * @applied: updates applied since the start
 * @skipped: updates skipped since the start
 * @skipped_row: of these, the last ones in a row
 * @skip: the running update is skipped
 * @norm: last global norm, after the element clip, before the norm clip
 * @loss: last mean loss
 *
 * The first member of an optimizer's own state.
 */
struct optim_state {
	int64_t applied, skipped, skipped_row, skip;
	double norm, loss;
};

/**
 * k_loss_tree() - *dst = mean of x[n], summed as gradients are: a binary counter
 *
 * Slot j holds the sum of 2^j consecutive values, older + newer; the slots fold from
 * small to large; then one division.
 */
void k_loss_tree(double *dst, const double *x, int n);

/**
 * k_optim_guard() - norm and finiteness of the update: begins it or skips it
 * @st: norm, loss, skip, skipped, skipped_row and applied are written
 * @partial: sums of squares
 * @nr: their number
 * @loss: mean loss of the step, device; not finite skips the update
 */
void k_optim_guard(struct optim_state *st, const double *partial, size_t nr, const double *loss);

/* ---- AdamW and AdamWSPAM ---------------------------------------------------- */

enum { ADAM_WINDOW = 100 };	/* gradient norms the spike detector looks back at */

/**
 * struct adam_hyper - what is constant over a run
 * @beta1, @beta2, @epsilon: Adam
 * @grad_clip: limit of the global norm, 0 = off
 * @inv_accum: 1 / GRADIENT_ACCUMULATION, applied to gradients when they are read
 * @theta: SPAM element clip, 0 = off
 * @clip_after: updates that the moments must have seen
 * @spike: SPAM z threshold, 0 = off
 * @interval: SPAM reset interval, 0 = off
 * @warmup: updates of the factor f after a reset, 0 = off
 */
struct adam_hyper {
	double beta1, beta2, epsilon, grad_clip, inv_accum;
	double theta, spike;
	int clip_after, interval, warmup;
};

/**
 * struct adam_state - the optimizer's own memory
 * @common: of every optimizer
 * @count: updates the moments have seen since start or reset (bias correction)
 * @resets: resets so far
 * @warm: next n of the warmup after a reset, 0 = none running
 * @spikes: updates whose norm was a spike
 * @spike_now: the running update is a spike
 * @reset_now: moments are zeroed after the running update
 * @z: last z-score
 * @gscale: factor of gradients in the running update
 * @lr: lr * f of the running update
 * @corr1, @corr2: 1 - beta^count of the running update
 * @clip: of the running update: an element g is clipped where g^2 > clip v > 0; 0 = none
 * @nr_norms: how many of @norms are set
 * @head: slot of the next one
 * @norms: the last norms, a ring
 */
struct adam_state {
	struct optim_state common;
	int64_t count, resets, warm, spikes, spike_now, reset_now;
	double z, gscale, lr, corr1, corr2, clip;
	int64_t nr_norms, head;
	double norms[ADAM_WINDOW];
};

/**
 * struct adam_buffers - what one update reads and writes
 * @g: sums of gradients over the micro-batches; not changed
 * @m: first moments
 * @v: second moments
 * @master: master weights, or NULL: the weights are their own
 * @w: weights as the kernels read them
 *
 * Element i of a span stands at [i] of the first four, and at [offset + i] of @w.
 */
struct adam_buffers {
	const grad_t *g;
	grad_t *m, *v, *master;
	param_t *w;
};

/**
 * k_adam_norm() - sums of squares of clip(g) * inv_accum in double, and the first
 * element of g that is not finite
 * @partial: one per chunk of the flat buffers; those of @s are written
 * @bad: the same, element within the chunk, -1: all are finite
 *
 * Elements are clipped (SPAM): g = sign(g) sqrt(theta v^) where g^2 > theta v^ > 0, sums
 * being compared and clipped as g * inv_accum would be; v^ is bias-corrected with
 * st->count. Nothing while count < clip_after; what is infinite stays so. Huang et al.
 * 2025, arXiv 2501.06842. Frozen tensors count as 0.
 */
void k_adam_norm(double *partial, int32_t *bad, const struct adam_buffers *x,
		 const struct optim_span *s, const struct adam_hyper *hp,
		 const struct adam_state *st);

/**
 * k_adam_decide() - spike, clip factor, warmup of the update, where it is not skipped
 * @st: after k_optim_guard() of its common part
 * @lr: device scalar: the schedule's learning rate
 *
 * A skipped norm never enters the window; z is against the previous norms (population
 * deviation; 0 with fewer than 10 or no deviation).
 */
void k_adam_decide(struct adam_state *st, const double *lr, const struct adam_hyper *hp);

/**
 * k_adamw() - one update: element clip, spike damping, moments, weights, reset
 * @st: decided; skip leaves everything as it is
 *
 * w -= lr (m^ / (sqrt(v^) + epsilon) + decay w). Loshchilov and Hutter 2017,
 * arXiv 1711.05101. Elements are clipped as in k_adam_norm(). With masters these are
 * updated, and weights are their values rounded as k_cast() does; those of a wide range
 * are not rounded.
 */
void k_adamw(const struct adam_buffers *x, const struct optim_span *s, const struct adam_hyper *hp,
	     const struct adam_state *st);

#ifdef __cplusplus
}
#endif

#endif
