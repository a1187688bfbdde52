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

enum { MB = B_MAX < 2 ? B_MAX : 2 };	/* sequences of these calls */

struct net {
	struct model m;
	char *arena;
	size_t bytes;
	grad_t *dw, *spare;		/* gradients, and where unwanted ones go */
	int t;
	int32_t *tok, *target;		/* [MB][t] */
	double tol;			/* of two ways to the same logits */
};

static void net_init(struct net *n, enum phase phase, enum recompute recompute)
{
	memset(n, 0, sizeof(*n));
	model_layout(&n->m);
	if (phase == PHASE_TRAIN)
		n->m.recompute = recompute;
	n->bytes = model_place(&n->m, NULL, phase, MB, 0, NULL);
	n->arena = guarded_alloc(n->bytes);
	ok(model_place(&n->m, n->arena, phase, MB, 0, NULL) == n->bytes,
	   "arena of phase %d: measured is placed", phase);
	memset(n->m.w, 0, n->m.param_elems * sizeof(param_t));
	for (int i = 0; i < n->m.nr_entries; i++)
		fill_param(n->m.entries[i].p, n->m.w + n->m.entries[i].offset,
			   n->m.entries[i].name);
	n->dw = guarded_alloc(n->m.param_elems * sizeof(grad_t));
	n->spare = guarded_alloc(n->m.param_elems * sizeof(grad_t));
	if (phase == PHASE_TRAIN)
		n->m.dw = n->dw;
	n->t = T_MAX;
	n->tok = xmalloc(MB * T_MAX * sizeof(*n->tok));
	n->target = xmalloc(MB * T_MAX * sizeof(*n->target));
	for (int i = 0; i < MB * T_MAX; i++) {
		n->tok[i] = rng_u64(7, 7, i) % CONFIG_VOCAB_SIZE;
		/* every fourth position is not scored; the first is */
		n->target[i] = i % 4 == 3 ? -1 : (int32_t)(rng_u64(7, 8, i) % CONFIG_VOCAB_SIZE);
	}
}

static void net_run(struct net *n, bool backward)
{
	memset(n->m.tmp, 0xFF, sizeof(act_t));
	model_load(&n->m, &(struct batch){ .b = MB, .t = n->t, .tok = n->tok,
					   .target = n->target });
	if (DROPOUT && n->m.phase == PHASE_TRAIN)
		model_draw(&n->m, 7, 3);
	model_forward(&n->m, backward);
	if (backward)
		model_backward(&n->m, NULL, NULL);
	arch_sync();
}

/* Logits [MB][t][V] of the last forward, on the host. */
static acc_t *net_logits(struct net *n)
{
	int rows = MB * n->t;
	acc_t *all = xmalloc((size_t)rows * V * sizeof(*all));

	for (int r = 0; r < rows; r += LOGIT_ROWS) {
		int k = MIN((int)LOGIT_ROWS, rows - r);

		arch_get(all + (size_t)r * V, model_logits(&n->m, r, k),
			 (size_t)k * V * sizeof(*all));
	}
	return all;
}

/* Largest difference over the real columns of rows (i, j < upto), over the largest logit. */
static double logits_differ(const acc_t *a, int ta, const acc_t *b, int tb, int upto)
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
	grad_t *dw = n->m.dw;
	double aux;

	net_run(n, false);
	if (!model_has_aux(&n->m) && !DROPOUT)
		return model_loss(&n->m);
	n->m.dw = n->spare;
	model_forward(&n->m, true);
	n->m.dw = dw;
	arch_get(&aux, n->m.aux, sizeof(aux));
	return model_loss(&n->m) + aux;
}

/* Detached taps come from a second, unperturbed model, which keeps them all. */
static void model_gradients(struct net *n)
{
	struct net rec;
	double error, worst = 0;
	bool good = true;

	net_init(&rec, PHASE_TRAIN, RECOMPUTE_ACTIVATIONS);
	net_run(&rec, false);
	n->m.replay = rec.m.taps;
	net_run(n, true);
	for (int i = 0; i < n->m.nr_entries; i++) {
		const struct param_entry *e = &n->m.entries[i];

		if (e->p->flags & FROZEN)
			continue;
		if (!fd_agrees(loss_of, n, (acc_t *)(n->m.w + e->offset), n->dw + e->offset, e->numel,
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

static bool same_gradients(const struct net *n, const struct net *r, double tol)
{
	for (int i = 0; i < n->m.nr_entries; i++) {
		const struct param_entry *e = &n->m.entries[i];

		if (!agree(r->dw + e->offset, n->dw + e->offset, sizeof(*n->dw), e->numel, tol)) {
			diag("%s differs", e->name);
			return false;
		}
	}
	return true;
}

/* The second's with nothing but NaN in the scratch, of which no metric may read what it left. */
static bool same_metrics(const struct net *n, const struct net *r, int s)
{
	struct metric a[NR_METRICS], b[NR_METRICS];
	int nr = model_metrics(&n->m, s, a);

	memset(r->m.tmp, 0xFF, r->m.sub[s].mixer->tmp_size);
	if (model_metrics(&r->m, s, b) != nr)
		return false;
	for (int i = 0; i < nr; i++)
		if (a[i].value != b[i].value) {
			diag("sub-layer %d, %s: %.17g, %.17g", s, a[i].name, a[i].value, b[i].value);
			return false;
		}
	return true;
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
	ok(same, "%s give the same bits of every gradient",
	   IS_ENABLED(CONFIG_ARCH_CPU) ? "1 and 2 threads" : "two runs");
	free(first);
}

/* The first sub-layer's mixer, and as one with an auxiliary loss: 1 for each forward. */
static const struct mixer *plain;
static struct mixer counted;

static void counted_forward(const struct mixer_args *a)
{
	plain->forward(a);
	arch_sync();
	if (a->aux)
		*a->aux += 1;
}

/*
 * Loss, auxiliary losses, every gradient and every statistic of @n with this kind of
 * recomputation, twice: the second batch finds what the first one left.
 */
static void model_recomputes(struct net *n, enum recompute kind, const char *what)
{
	double tol = kind == RECOMPUTE_ACTIVATIONS ? AGAIN_TOL * sqrt(NL) : 0;
	int32_t first = n->tok[0];
	double losses[2][2];
	bool same = true, more = model_has_aux(&n->m);
	struct net r;

	net_init(&r, PHASE_TRAIN, kind);
	plain = n->m.sub[0].mixer;
	counted = *plain;
	counted.aux = true;
	counted.forward = counted_forward;
	n->m.sub[0].mixer = r.m.sub[0].mixer = &counted;
	for (int i = 0; i < 2; i++) {
		n->tok[0] = r.tok[0] = i;
		net_run(n, true);
		net_run(&r, true);
		arch_get(losses[0], n->m.loss, sizeof(losses[0]));
		arch_get(losses[1], r.m.loss, sizeof(losses[1]));
		same &= !memcmp(losses[0], losses[1], sizeof(losses[0])) &&
			(more ? losses[0][1] > 1 : losses[0][1] == 1) && same_gradients(n, &r, tol);
		for (int s = 0; s < NR_SUB; s++)
			same &= same_metrics(n, &r, s);
	}
	ok(same, "recomputing %s: the same bits of losses, gradients and statistics", what);
	ok(guards_whole(r.arena, r.bytes), "writes inside its arena of %zu instead of %zu bytes",
	   r.bytes, n->bytes);
	guarded_free(r.arena);
	n->m.sub[0].mixer = plain;
	n->tok[0] = first;
}

/* ---- rounding ------------------------------------------------------------- */

#define MOVES 4

/* Every element of a tensor by one and a half roundings, up or down. */
static void move(param_t *w, const struct param_entry *e, uint64_t draw)
{
	size_t elem = e->p->flags & WIDE ? ACC : ACT;

	for (size_t k = 0; k < e->numel; k++) {
		double sign = rng_u64(7, 9 + draw, k) % 2 ? 1 : -1, x = get(w + e->offset, elem, k);

		put(w + e->offset, elem, k, x * (1 + sign * 1.5 * ACT_ROUND));
	}
}

/*
 * How far the logits @full move at most where every weight moves by about one rounding, to a
 * neighbour of bf16, MOVES times: what rounding does to this model, measured. A norm of few or
 * nearly equal elements multiplies it, and so do scores of a narrow latent and a choice between
 * equals, which SAME_TOL leaves out. 0 where activations are not rounded.
 */
static double sensitivity(struct net *n, const acc_t *full)
{
	size_t bytes = n->m.param_elems * sizeof(param_t), at = 0;
	param_t *old = xmalloc(bytes);
	double most = 0;

	if (ACT == ACC)
		return 0;
	memcpy(old, n->m.w, bytes);
	for (int turn = 0; turn < MOVES; turn++) {
		acc_t *moved;

		for (int i = 0; i < n->m.nr_entries; i++, at++)
			move(n->m.w, &n->m.entries[i], at);
		net_run(n, false);
		moved = net_logits(n);
		most = MAX(most, logits_differ(full, n->t, moved, n->t, n->t));
		memcpy(n->m.w, old, bytes);
		free(moved);
	}
	free(old);
	return most;
}

/* ---- causality ------------------------------------------------------------- */

static bool regroups(const struct model *m)
{
	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->regroups)
			return true;
	return false;
}

/*
 * Two ways to the same logits: their difference is small. Where a rounding of bf16 may choose
 * another expert, there is nothing to compare.
 */
static void same_logits(const struct model *m, double diff, double tol, const char *what)
{
	if (regroups(m) && ACT != ACC)
		ok(true, "%s # SKIP a rounding may choose another expert", what);
	else
		ok(diff <= tol, "%s: the same logits (%.2g)", what, diff);
}

static void model_change(struct net *n, const acc_t *full)
{
	int cut = (n->t - 1) / 2;
	int32_t *old = xmalloc(MB * n->t * sizeof(*old));
	acc_t *changed;
	double diff;

	memcpy(old, n->tok, MB * n->t * sizeof(*old));
	for (int i = 0; i < MB * n->t; i++)
		if (i % n->t > cut)
			n->tok[i] = (n->tok[i] + 1) % CONFIG_VOCAB_SIZE;
	net_run(n, false);
	changed = net_logits(n);
	diff = logits_differ(full, n->t, changed, n->t, cut + 1);
	if (n->t == 1)
		ok(diff == 0, "the only token has no later ones");
	else if (LEAKS)
		ok(diff > 1e-6, "the sequence pool leaks later tokens, as its help says (%.2g)", diff);
	else
		same_logits(&n->m, diff, regroups(&n->m) ? SAME_TOL : 0, "later tokens changed");
	ok(n->t == 1 || logits_differ(full, n->t, changed, n->t, n->t) > 1e-6,
	   "and they do change later ones");
	memcpy(n->tok, old, MB * n->t * sizeof(*old));
	free(changed);
	free(old);
}

static void model_truncate(struct net *n, const acc_t *full, int t)
{
	int32_t *old = n->tok;
	char what[32];
	acc_t *cut;
	double diff;

	snprintf(what, sizeof(what), "truncated to %d tokens", t);
	n->tok = xmalloc(MB * t * sizeof(*old));
	for (int i = 0; i < MB; i++)
		memcpy(n->tok + i * t, old + i * n->t, t * sizeof(*old));
	n->t = t;
	net_run(n, false);
	cut = net_logits(n);
	diff = logits_differ(cut, t, full, T_MAX, t);
	if (LEAKS)
		ok(t == T_MAX || diff > 1e-6, "truncated to %d: the leak shows (%.2g)", t, diff);
	else
		same_logits(&n->m, diff, n->tol, what);
	free(cut);
	free(n->tok);
	n->tok = old;
	n->t = T_MAX;
}

/* ---- decode ---------------------------------------------------------------- */

/* At once: what a library does at exit is the parent's. */
static void child_leave(int status, void *unused)
{
	(void)unused;
	_exit(status);
}

static void model_step_refuses(struct net *d)
{
	int32_t pos[MB] = { 0 };
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		fclose(stderr);
		on_exit(child_leave, NULL);
		model_step(&d->m, d->tok, pos, MB);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_INPUT, "step refuses the leaking pool");
}

/*
 * Prompts of @len[i] tokens, then steps: rows of logits from len[i] - 1 (0: from 0) on.
 * A sequence at its end repeats its last position, whose logits no longer count.
 */
static void decode_rows(struct net *n, struct net *d, const int32_t *len, acc_t *all)
{
	int32_t now[MB], pos[MB];
	const acc_t *row;

	for (int k = len[0] ? -1 : 0; k < T_MAX; k++) {
		for (int i = 0; i < MB; i++) {
			pos[i] = MIN(len[i] + k, T_MAX - 1);
			now[i] = n->tok[i * T_MAX + pos[i]];
		}
		if (k < 0)
			row = model_fill(&d->m, &(struct batch){ .b = MB, .t = T_MAX, .tok = n->tok },
					 len);
		else
			row = model_step(&d->m, now, pos, MB);
		for (int i = 0; i < MB; i++)
			if (pos[i] == len[i] + k)
				arch_get(all + ((size_t)i * T_MAX + pos[i]) * V,
					 row + (size_t)i * V, V * sizeof(*row));
	}
}

static void decode_agrees(struct net *n, struct net *d, const acc_t *full, const int32_t *len,
			  const char *what)
{
	size_t rows = (size_t)MB * T_MAX * V;
	acc_t *all = xmalloc(rows * sizeof(*all));
	double diff;

	memcpy(all, full, rows * sizeof(*all));
	decode_rows(n, d, len, all);
	diff = logits_differ(full, T_MAX, all, T_MAX, T_MAX);
	same_logits(&n->m, diff, n->tol, what);
	free(all);
}

static void model_decode(struct net *n, const acc_t *full)
{
	int32_t none[MB] = { 0 }, ragged[MB];
	struct net d;

	net_init(&d, PHASE_DECODE, RECOMPUTE_NONE);
	if (LEAKS) {
		model_step_refuses(&d);
		return;
	}
	for (int i = 0; i < MB; i++)
		ragged[i] = i ? MAX(1, T_MAX / 3) : MAX(1, T_MAX - 2);
	decode_agrees(n, &d, full, none, "decode by steps");
	decode_agrees(n, &d, full, none, "second sequences in the same caches");
	decode_agrees(n, &d, full, ragged, "a fill of ragged prompts, then steps");
	ok(guards_whole(d.arena, d.bytes), "decode writes inside its arena");
}

/* ---- losses and ranges ------------------------------------------------------- */

static void model_row_losses(struct net *n)
{
	acc_t *loss = xmalloc(MB * n->t * sizeof(*loss));
	double sum = 0, mean;
	int scored = 0;
	bool zero = true;

	net_run(n, false);
	mean = model_loss(&n->m);
	arch_get(loss, model_row_loss(&n->m), MB * n->t * sizeof(*loss));
	for (int i = 0; i < MB * n->t; i++) {
		sum += loss[i];
		scored += n->target[i] >= 0;
		zero &= n->target[i] >= 0 || loss[i] == 0;
	}
	ok(zero && scored && fabs(mean - sum / scored) <= 1e-12 * fabs(mean),
	   "the loss is the mean over scored positions, others have none");
	free(loss);
}

/* Elements that were reported complete: each once, and complete they are. */
struct ranges {
	const struct net *n;
	grad_t *seen;
	unsigned char *times;
};

static void on_ready(void *ctx, size_t offset, size_t n)
{
	struct ranges *r = ctx;

	arch_sync();
	memcpy(r->seen + offset, r->n->dw + offset, n * sizeof(*r->seen));
	for (size_t i = offset; i < offset + n; i++)
		r->times[i]++;
}

static void model_reports_ranges(struct net *n)
{
	size_t elems = n->m.param_elems;
	struct ranges r = { n, xcalloc(elems, sizeof(grad_t)), xcalloc(elems, 1) };
	bool once = true;

	net_run(n, false);
	model_forward(&n->m, true);
	model_backward(&n->m, on_ready, &r);
	arch_sync();
	for (size_t i = 0; i < elems; i++)
		once &= r.times[i] == 1;
	ok(once && !memcmp(r.seen, n->dw, elems * sizeof(*r.seen)),
	   "backward reports every element once, complete");
	free(r.seen);
	free(r.times);
}

static void model_eval(struct net *n, const acc_t *full)
{
	struct net e;
	acc_t *logits;

	net_init(&e, PHASE_EVAL, RECOMPUTE_NONE);
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
	acc_t *full;

	device_open(1);
	net_init(&n, PHASE_TRAIN, RECOMPUTE_NONE);
	model_gradients_live(&n);
	if (IS_ENABLED(CONFIG_REAL_DOUBLE))
		model_gradients(&n);
	model_repeats(&n);
	model_recomputes(&n, RECOMPUTE_ACTIVATIONS, "activations");
	model_recomputes(&n, RECOMPUTE_BLOCK, "blocks");
	net_run(&n, false);
	full = net_logits(&n);
	model_eval(&n, full);
	model_change(&n, full);
	n.tol = MAX(SAME_TOL, sensitivity(&n, full));
	model_truncate(&n, full, T_MAX);
	model_truncate(&n, full, MAX(1, T_MAX - 3));
	model_truncate(&n, full, 1);
	model_decode(&n, full);
	model_row_losses(&n);
	model_reports_ranges(&n);
	ok(guards_whole(n.arena, n.bytes), "training writes inside its arena");
	return tap_done();
}
