/* SPDX-License-Identifier: MIT */
/**
 * DOC: optimizer kernels
 *
 * The rules of kernels.h hold, except for struct optim_hyper: host memory, constant
 * over the run, read before the call returns.
 */
#ifndef TENON_KERNELS_OPTIM_H
#define TENON_KERNELS_OPTIM_H

#include "types.h"

enum { OPTIM_WINDOW = 100 };	/* gradient norms the spike detector looks back at */
#define OPTIM_CHUNK 65536	/* elements of one partial sum of squares */

/**
 * struct optim_range - a run of elements with one decay
 * @offset: first element
 * @numel: elements
 * @decay: weight decay, 0 where none applies
 */
struct optim_range {
	size_t offset, numel;
	double decay;
};

/**
 * struct optim_hyper - what is constant over a run
 * @beta1, @beta2, @epsilon: Adam
 * @grad_clip: limit of the global norm, 0 = off
 * @inv_accum: 1 / GRADIENT_ACCUMULATION, applied to gradients when they are read
 * @theta: SPAM element clip, 0 = off
 * @clip_after: updates that the moments must have seen
 * @spike: SPAM z threshold, 0 = off
 * @interval: SPAM reset interval, 0 = off
 * @warmup: updates of the factor f after a reset, 0 = off
 */
struct optim_hyper {
	double beta1, beta2, epsilon, grad_clip, inv_accum;
	double theta, spike;
	int clip_after, interval, warmup;
};

/**
 * struct optim_state - the optimizer's own memory, on the device and in checkpoints
 * @norms: the last norms, a ring
 * @nr_norms: how many of them are set
 * @head: slot of the next one
 * @applied: updates applied since the start
 * @count: updates the moments have seen since start or reset (bias correction)
 * @resets: resets so far
 * @warm: next n of the warmup after a reset, 0 = none running
 * @skipped: updates skipped since the start
 * @skipped_row: of these, the last ones in a row
 * @spikes: updates whose norm was a spike
 * @norm: last global norm, after the element clip, before the norm clip
 * @z: last z-score
 * @loss: last mean loss
 * @skip: the running update is skipped
 * @spike_now: the running update is a spike
 * @reset_now: moments are zeroed after the running update
 * @gscale: factor of gradients in the running update
 * @lr: lr * f of the running update
 * @corr1, @corr2: 1 - beta^count of the running update
 */
struct optim_state {
	double norms[OPTIM_WINDOW];
	int64_t nr_norms, head;
	int64_t applied, count, resets, warm, skipped, skipped_row, spikes;
	double norm, z, loss;
	int64_t skip, spike_now, reset_now;
	double gscale, lr, corr1, corr2;
};

/**
 * k_spam_clip() - g = sign(g) sqrt(theta v^) where g^2 > theta v^ > 0
 * @g: [n] sums over the micro-batches: compared and written as g * inv_accum would be
 * @v: [n] second moments before this update
 *
 * v^ is bias-corrected with state->count. Nothing while count < clip_after.
 * Huang et al. 2025, arXiv 2501.06842.
 */
void k_spam_clip(grad_t *g, const grad_t *v, size_t n, const struct optim_hyper *hp,
		 const struct optim_state *st);

/**
 * k_grad_norm() - sums of squares of g * inv_accum, in double
 * @partial: [ceil(n / OPTIM_CHUNK)] one per chunk
 */
void k_grad_norm(double *partial, const grad_t *g, size_t n, const struct optim_hyper *hp);

/**
 * k_optim_decide() - norm, finiteness, spike, clip factor, warmup of the update
 * @st: read and written
 * @partial: from k_grad_norm()
 * @nr: its length
 * @loss: mean loss of the step, device; not finite skips the update
 * @lr: device scalar: the schedule's learning rate
 *
 * spec order: a skipped norm never enters the window; z against the previous norms
 * (population deviation; 0 with fewer than 10 or no deviation).
 */
void k_optim_decide(struct optim_state *st, const double *partial, size_t nr, const double *loss,
		    const double *lr, const struct optim_hyper *hp);

/**
 * k_adamw() - one update: spike damping, moments, weights, reset
 * @w: parameters as the kernels read them
 * @master: master weights; the same pointer as @w where param_t is grad_t
 * @g: summed gradients
 * @m: first moments
 * @v: second moments
 * @ranges: [nr] in device memory, covering every element once
 * @st: decided; skip leaves everything as it is
 *
 * w -= lr (m^ / (sqrt(v^) + epsilon) + decay w). Loshchilov and Hutter 2017,
 * arXiv 1711.05101.
 */
void k_adamw(param_t *w, grad_t *master, const grad_t *g, grad_t *m, grad_t *v,
	     const struct optim_range *ranges, int nr, const struct optim_hyper *hp,
	     const struct optim_state *st);

#endif
