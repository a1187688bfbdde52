// SPDX-License-Identifier: MIT
/*
 * One step of training: the micro-batches of this rank, each with a fresh gradient
 * leaf, summed by the accumulation tree; one update of the weights.
 *
 * Nothing here waits for the device but step_late(), which the loop calls when the next
 * step's micro-batches have been started. What differs from one micro-batch to the next is
 * in device memory, so that an arch can record each sequence of kernels once.
 */
#include <math.h>

#include "dist.h"
#include "train.h"

/* One recorded sequence: into buffer @newer; merges read it and write @older. */
struct sequence {
	struct run *r;
	struct accum_merge x;
};

static void forward(const struct sequence *q)
{
	q->r->m.dw = q->r->accum.buf[q->x.newer];
	model_forward(&q->r->m, true);
}

static void backward(const struct sequence *q)
{
	model_backward(&q->r->m, NULL, NULL);
}

static void micro_body(void *arg)
{
	forward(arg);
	backward(arg);
}

static void merge_body(void *arg)
{
	const struct sequence *q = arg;

	accum_merge(&q->r->accum, q->x, 0, q->r->accum.elems);
}

static void told(const struct run *r, enum stage s)
{
	if (r->stage)
		r->stage(s);
}

static void merge(struct run *r, const struct accum_merge *merges, int nr)
{
	for (int i = 0; i < nr; i++) {
		struct sequence q = { r, merges[i] };

		arch_replay(&r->merge[q.x.older][q.x.newer], merge_body, &q);
	}
}

int step_micros(void)
{
	return CONFIG_GRADIENT_ACCUMULATION / dist_size();
}

void step_micro(struct run *r, int j, const struct batch *x)
{
	struct sequence q = { r, { .newer = accum_leaf(&r->accum) } };
	struct accum_merge merges[ACCUM_MAX_SLOTS];
	double *losses = r->optim.losses + dist_rank() * step_micros() + j;

	model_load(&r->m, x);
	if (DROPOUT)
		model_draw(&r->m, r->st.seed, r->st.micro + (int64_t)dist_rank() * step_micros() + j);
	if (r->stage) {
		forward(&q);
		told(r, STAGE_FORWARD);
		backward(&q);
		told(r, STAGE_BACKWARD);
	} else {
		arch_replay(&r->micro[q.x.newer], micro_body, &q);
	}
	arch_copy(losses, r->m.loss, sizeof(*losses));
	arch_copy(losses + CONFIG_GRADIENT_ACCUMULATION, r->m.aux, sizeof(*losses));
	merge(r, merges, accum_push(&r->accum, q.x.newer, merges));
	told(r, STAGE_MERGE);
}

bool step_begin(struct run *r)
{
	const struct batch x = { .b = B_MAX, .t = T_MAX, .tok = r->tok, .target = r->target };
	int64_t first = r->st.micro + (int64_t)dist_rank() * step_micros();

	arch_mark_set(&r->begun);
	for (int j = 0; j < step_micros(); j++) {
		if (stop_agreed()) {
			accum_drop(&r->accum);
			return false;
		}
		data_train_batch(r->st.seed, first + j, B_MAX, T_MAX, r->tok, r->target);
		step_micro(r, j, &x);
	}
	return true;
}

void step_update(struct run *r)
{
	double lr = schedule_lr(r->st.step, r->st.total);
	struct accum_merge merges[ACCUM_MAX_SLOTS];
	struct late *late = &r->late;
	struct arch_mark swap = late->from;
	int sum;

	merge(r, merges, accum_fold(&r->accum, merges, &sum));
	told(r, STAGE_MERGE);
	optim_update(&r->optim, &r->m, r->accum.buf[sum], lr);
	told(r, STAGE_UPDATE);
	optim_get_later(&r->optim, &late->state, late->loss);
	arch_mark_set(&late->mark);
	late->from = r->begun;
	r->begun = swap;
	r->st.step++;
	r->st.micro += CONFIG_GRADIENT_ACCUMULATION;
	late->pending = true;
	late->row = (struct step_row){
		.step = r->st.step, .tokens = r->st.micro * BT, .lr = lr,
		.has_aux = model_has_aux(&r->m),
	};
}

/* The first name that explains a skipped update. */
static const char *nonfinite_name(const struct run *r)
{
	const char *name = optim_nonfinite(&r->optim, &r->m);

	if (name)
		return name;
	return isfinite(r->st.optim.common.loss) ? "gradient norm" : "loss";
}

bool step_late(struct run *r, struct step_row *row, const char **nonfinite)
{
	struct late *late = &r->late;
	double seconds;

	if (!late->pending)
		return false;
	late->pending = false;
	arch_mark_wait(&late->mark);
	r->st.optim = late->state;
	*nonfinite = r->st.optim.common.skip ? nonfinite_name(r) : NULL;
	*row = late->row;
	row->loss = late->loss[0];
	row->loss_aux = late->loss[1];
	row->grad_norm = r->st.optim.common.norm;
	row->skipped = r->st.optim.common.skipped;
	seconds = arch_mark_seconds(&late->from, &late->mark);
	row->ms = seconds * 1e3;
	row->tok_s = (double)BT * CONFIG_GRADIENT_ACCUMULATION / seconds;
	return true;
}
