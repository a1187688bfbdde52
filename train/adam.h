/* SPDX-License-Identifier: MIT */
/*
 * What AdamW and AdamWSPAM share: both run the same kernels over two moments per
 * element, with other settings.
 */
#ifndef TENON_ADAM_H
#define TENON_ADAM_H

#include <assert.h>

#include "optim.h"
#include "util.h"

static_assert(sizeof(struct adam_state) <= OPTIM_STATE_MAX, "raise OPTIM_STATE_MAX");

static const char *const adam_buffer_names[] = { "m.", "v." };

static const struct optim_scalar adam_scalars[] = {
	OPTIM_INT(struct adam_state, count), OPTIM_INT(struct adam_state, resets),
	OPTIM_INT(struct adam_state, warm), OPTIM_INT(struct adam_state, spikes),
	OPTIM_INT(struct adam_state, spike_now), OPTIM_INT(struct adam_state, reset_now),
	OPTIM_REAL(struct adam_state, z), OPTIM_REAL(struct adam_state, gscale),
	OPTIM_REAL(struct adam_state, lr), OPTIM_REAL(struct adam_state, corr1),
	OPTIM_REAL(struct adam_state, corr2), OPTIM_REAL(struct adam_state, clip),
	OPTIM_INT(struct adam_state, nr_norms), OPTIM_INT(struct adam_state, head),
	OPTIM_REALS(struct adam_state, norms),
};

static inline struct adam_buffers adam_buffers(const struct optim *o, const struct model *m,
					       const grad_t *grad)
{
	return (struct adam_buffers){
		.g = grad + o->span.offset, .m = o->buf[0], .v = o->buf[1], .master = o->master,
		.w = model_weights(m),
	};
}

static inline void adam_norm(struct optim *o, const struct model *m, const grad_t *grad,
			     const struct adam_hyper *hp)
{
	const struct adam_buffers x = adam_buffers(o, m, grad);

	k_adam_norm(o->partial, o->bad, &x, &o->span, hp, o->state);
}

static inline void adam_update(struct optim *o, const struct model *m, const grad_t *grad,
			       const struct adam_hyper *hp)
{
	const struct adam_buffers x = adam_buffers(o, m, grad);

	k_adam_decide(o->state, o->lr, hp);
	k_adamw(&x, &o->span, hp, o->state);
}

#define ADAM_RULE							\
	.buffers = adam_buffer_names,					\
	.nr_buffers = ARRAY_SIZE(adam_buffer_names),			\
	.scalars = adam_scalars,					\
	.nr_scalars = ARRAY_SIZE(adam_scalars),				\
	.state_size = sizeof(struct adam_state)

#endif
