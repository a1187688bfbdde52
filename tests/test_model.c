// SPDX-License-Identifier: MIT
/*
 * The whole model: gradients with recorded detached taps, liveness of every tensor,
 * causality under changed and truncated tokens, decode equals forward, arenas.
 */
#include <omp.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define LEAKS IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_SEQUENCE)

/*
 * Two ways to one sum of at most F terms differ by about sqrt(F) eps per layer; 1e-11
 * in double and 2e-4 in float leave two decades. Relative to the largest logit.
 */
#define SAME_TOL (IS_ENABLED(CONFIG_REAL_DOUBLE) ? 1e-11 : 2e-4)

enum { MB = B_MAX < 2 ? B_MAX : 2 };	/* sequences of these calls */

struct net {
	struct model m;
	char *arena;
	size_t bytes;
	grad_t *dw;
	int t;
	int32_t *tok;			/* [MB][t + 1] */
};

static void net_init(struct net *n, enum phase phase)
{
	memset(n, 0, sizeof(*n));
	model_layout(&n->m);
	n->bytes = model_place(&n->m, NULL, phase, MB, 0, NULL);
	n->arena = guarded_alloc(n->bytes);
	ok(model_place(&n->m, n->arena, phase, MB, 0, NULL) == n->bytes,
	   "arena of phase %d: measured is placed", phase);
	memset(n->m.w, 0, n->m.param_elems * sizeof(param_t));
	for (int i = 0; i < n->m.nr_entries; i++) {
		const struct param_entry *e = &n->m.entries[i];

		fill_param(e->p, n->m.w + e->offset, e->name);
	}
	n->dw = guarded_alloc(n->m.param_elems * sizeof(grad_t));
	if (phase == PHASE_TRAIN)
		n->m.dw = n->dw;
	n->t = T_MAX;
	n->tok = xmalloc(MB * (T_MAX + 1) * sizeof(*n->tok));
	for (int i = 0; i < MB * (T_MAX + 1); i++)
		n->tok[i] = rng_u64(7, 7, i) % CONFIG_VOCAB_SIZE;
}

static void net_run(struct net *n, bool backward)
{
	memset(n->m.tmp, 0xFF, sizeof(act_t));
	model_forward(&n->m, n->tok, MB, n->t, backward);
	if (backward)
		model_backward(&n->m, MB, n->t);
}

/* Logits [MB][t][V] of the last forward, on the host. */
static act_t *net_logits(struct net *n)
{
	int rows = MB * n->t;
	act_t *all = xmalloc((size_t)rows * V * sizeof(*all));

	for (int r = 0; r < rows; r += HEAD_ROWS) {
		int k = MIN(HEAD_ROWS, rows - r);

		arch_get(all + (size_t)r * V, model_logits(&n->m, r, k),
			 (size_t)k * V * sizeof(*all));
	}
	return all;
}

/* Largest difference over the real columns of rows (i, j < upto), over the largest logit. */
static double logits_differ(const act_t *a, int ta, const act_t *b, int tb, int upto)
{
	double diff = 0, top = 0;

	for (int i = 0; i < MB; i++)
		for (int j = 0; j < upto; j++)
			for (int v = 0; v < CONFIG_VOCAB_SIZE; v++) {
				double x = a[((size_t)i * ta + j) * V + v];
				double y = b[((size_t)i * tb + j) * V + v];

				diff = x == y ? diff : MAX(diff, fabs(x - y));
				top = MAX(top, fabs(x));
			}
	return diff / top;
}

static double loss_of(void *ctx)
{
	struct net *n = ctx;

	net_run(n, false);
	return model_loss(&n->m);
}

/* Detached taps come from a second, unperturbed model. */
static void model_gradients(struct net *n)
{
	struct net rec;
	double error, worst = 0;
	bool good = true;

	net_init(&rec, PHASE_TRAIN);
	net_run(&rec, false);
	n->m.replay = rec.m.taps;
	net_run(n, true);
	for (int i = 0; i < n->m.nr_entries; i++) {
		const struct param_entry *e = &n->m.entries[i];

		if (!fd_agrees(loss_of, n, n->m.w + e->offset, n->dw + e->offset, e->numel,
			       e->name, &error)) {
			diag("%s: error %.3g", e->name, error);
			good = false;
		}
		worst = MAX(worst, error);
	}
	ok(good, "gradients of all %d tensors agree with finite differences (worst %.2g)",
	   n->m.nr_entries, worst);
	n->m.replay = NULL;
	guarded_free(rec.arena);
}

/*
 * Whether nothing need reach a tensor: one position makes no attention, and a first
 * layer may read a tap that no earlier one writes.
 */
static bool unreachable(const struct model *m, const struct param_entry *e)
{
	for (int s = 0; s < NR_SUB; s++) {
		const struct sublayer *sub = &m->sub[s];
		bool waits = false;

		if (e->offset < sub->param || e->offset >= sub->param + sub->elems)
			continue;
		for (int tap = 0; tap < NR_TAPS; tap++)
			waits |= (sub->mixer->taps_read & 1u << tap) && sub->from[tap] < 0;
		return (waits && sub->mixer->role == ROLE_MLP) || T_MAX == 1;
	}
	return false;
}

static void model_gradients_live(struct net *n)
{
	int dead = 0;

	memset(n->dw, 0xFF, n->m.param_elems * sizeof(grad_t));
	net_run(n, true);
	for (int i = 0; i < n->m.nr_entries; i++) {
		const struct param_entry *e = &n->m.entries[i];
		double norm = dot(n->dw + e->offset, n->dw + e->offset, e->numel);

		if (!(norm > 0 || unreachable(&n->m, e)) || !isfinite(norm)) {
			diag("%s: gradient norm^2 %g", e->name, norm);
			dead++;
		}
	}
	ok(!dead, "every tensor's gradient is written, finite and, where it can be, not zero");
}

static void model_repeats(struct net *n)
{
	grad_t *first = xmalloc(n->m.param_elems * sizeof(*first));
	bool same = true;

	net_run(n, true);
	memcpy(first, n->dw, n->m.param_elems * sizeof(*first));
	omp_set_num_threads(2);
	net_run(n, true);
	omp_set_num_threads(1);
	for (int i = 0; i < n->m.nr_entries; i++)
		same &= !memcmp(first + n->m.entries[i].offset, n->dw + n->m.entries[i].offset,
				n->m.entries[i].numel * sizeof(*first));
	ok(same, "1 and 2 threads give the same bits of every gradient");
	free(first);
}

/* ---- causality ------------------------------------------------------------- */

static void model_change(struct net *n, const act_t *full)
{
	int cut = (n->t - 1) / 2;
	int32_t *old = xmalloc(MB * (n->t + 1) * sizeof(*old));
	act_t *changed;
	double diff;

	memcpy(old, n->tok, MB * (n->t + 1) * sizeof(*old));
	for (int i = 0; i < MB * (n->t + 1); i++)
		if (i % (n->t + 1) > cut)
			n->tok[i] = (n->tok[i] + 1) % CONFIG_VOCAB_SIZE;
	net_run(n, false);
	changed = net_logits(n);
	diff = logits_differ(full, n->t, changed, n->t, cut + 1);
	if (n->t == 1)
		ok(diff == 0, "the only token has no later ones");
	else if (LEAKS)
		ok(diff > 1e-6, "the sequence pool leaks later tokens, as its help says (%.2g)", diff);
	else
		ok(diff == 0, "changed later tokens change no bit of earlier logits (%.2g)", diff);
	ok(n->t == 1 || logits_differ(full, n->t, changed, n->t, n->t) > 1e-6,
	   "and they do change later ones");
	memcpy(n->tok, old, MB * (n->t + 1) * sizeof(*old));
	free(changed);
	free(old);
}

static void model_truncate(struct net *n, const act_t *full, int t)
{
	int32_t *old = n->tok;
	act_t *cut;
	double diff;

	n->tok = xmalloc(MB * (t + 1) * sizeof(*old));
	for (int i = 0; i < MB; i++)
		memcpy(n->tok + i * (t + 1), old + i * (n->t + 1), (t + 1) * sizeof(*old));
	n->t = t;
	net_run(n, false);
	cut = net_logits(n);
	diff = logits_differ(cut, t, full, T_MAX, t);
	if (LEAKS)
		ok(t == T_MAX || diff > 1e-6, "truncated to %d: the leak shows (%.2g)", t, diff);
	else
		ok(diff <= SAME_TOL, "truncated to %d tokens: the same logits (%.2g)", t, diff);
	free(cut);
	free(n->tok);
	n->tok = old;
	n->t = T_MAX;
}

/* ---- decode ---------------------------------------------------------------- */

static void model_step_refuses(struct net *d)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		fclose(stderr);
		model_step(&d->m, d->tok, MB, 0);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_INPUT, "step refuses the leaking pool");
}

static void model_decode(struct net *n, const act_t *full)
{
	struct net d;
	int32_t now[MB];
	act_t *all = xmalloc((size_t)MB * T_MAX * V * sizeof(*all));
	double diff;

	net_init(&d, PHASE_DECODE);
	if (LEAKS) {
		model_step_refuses(&d);
		return;
	}
	for (int again = 0; again < 2; again++) {
		for (int pos = 0; pos < T_MAX; pos++) {
			const act_t *row;

			for (int i = 0; i < MB; i++)
				now[i] = n->tok[i * (T_MAX + 1) + pos];
			row = model_step(&d.m, now, MB, pos);
			for (int i = 0; i < MB; i++)
				arch_get(all + ((size_t)i * T_MAX + pos) * V, row + (size_t)i * V,
					 V * sizeof(*row));
		}
		diff = logits_differ(full, T_MAX, all, T_MAX, T_MAX);
		ok(diff <= SAME_TOL, "%s: %d steps give the logits of the forward (%.2g)",
		   again ? "a second sequence in the same cache" : "decode", T_MAX, diff);
	}
	ok(guards_whole(d.arena, d.bytes), "decode writes inside its arena");
	free(all);
}

static void model_eval(struct net *n, const act_t *full)
{
	struct net e;
	act_t *logits;

	net_init(&e, PHASE_EVAL);
	net_run(&e, false);
	logits = net_logits(&e);
	ok(!logits_differ(full, T_MAX, logits, T_MAX, T_MAX) &&
	   model_loss(&e.m) == model_loss(&n->m), "evaluation's arena gives training's bits");
	ok(guards_whole(e.arena, e.bytes), "evaluation writes inside its arena");
	free(logits);
}

int main(void)
{
	struct net n;
	act_t *full;

	arch_init(0, 1);
	net_init(&n, PHASE_TRAIN);
	model_gradients_live(&n);
	if (IS_ENABLED(CONFIG_REAL_DOUBLE))
		model_gradients(&n);
	model_repeats(&n);
	net_run(&n, false);
	full = net_logits(&n);
	model_eval(&n, full);
	model_change(&n, full);
	model_truncate(&n, full, T_MAX);
	model_truncate(&n, full, MAX(1, T_MAX - 3));
	model_truncate(&n, full, 1);
	model_decode(&n, full);
	ok(guards_whole(n.arena, n.bytes), "training writes inside its arena");
	return tap_done();
}
