// SPDX-License-Identifier: MIT
/*
 * One step of training: the micro-batches of this rank, each with a fresh gradient
 * leaf, summed by the accumulation tree; one update of the weights.
 */
#include <math.h>

#include "dist.h"
#include "train.h"

/* Forward and backward of one micro-batch; its mean loss. */
static double micro_batch(struct run *r, int64_t micro)
{
	grad_t *leaf = accum_leaf(&r->accum);

	data_train_batch(r->st.seed, micro, B_MAX, T_MAX, r->tok);
	r->m.dw = leaf;
	model_forward(&r->m, r->tok, B_MAX, T_MAX, true);
	model_backward(&r->m, B_MAX, T_MAX);
	accum_push(&r->accum, leaf);
	return model_loss(&r->m);
}

/* The first name that explains a skipped update. */
static const char *nonfinite_name(const struct run *r, const grad_t *grad)
{
	const char *name = optim_nonfinite(&r->optim, &r->m, grad);

	if (name)
		return name;
	return isfinite(r->st.optim.loss) ? "gradient norm" : "loss";
}

bool step_run(struct run *r, struct step_row *row, const char **nonfinite)
{
	int n = CONFIG_GRADIENT_ACCUMULATION / dist_size();
	int64_t first = r->st.micro + (int64_t)dist_rank() * n;
	double lr = schedule_lr(r->st.step, r->st.total), loss = 0;
	grad_t *grad;

	for (int j = 0; j < n; j++) {
		if (stop_signal()) {
			accum_drop(&r->accum);
			return false;
		}
		loss += micro_batch(r, first + j);
	}
	loss /= n;
	if (r->metrics && (r->st.step + 1) % CONFIG_LOG_INTERVAL == 0)
		stats_log(r, r->st.step + 1);
	grad = accum_fold(&r->accum);
	optim_update(&r->optim, &r->m, grad, lr, loss);
	optim_get(&r->optim, &r->st.optim);
	r->st.step++;
	r->st.micro += CONFIG_GRADIENT_ACCUMULATION;
	*nonfinite = r->st.optim.skip ? nonfinite_name(r, grad) : NULL;
	*row = (struct step_row){
		.step = r->st.step,
		.tokens = r->st.micro * BT,
		.loss = loss,
		.lr = lr,
		.grad_norm = r->st.optim.norm,
		.skipped = r->st.optim.skipped,
	};
	return true;
}
