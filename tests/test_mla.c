// SPDX-License-Identifier: MIT
/*
 * mla beyond what every mixer is tested for: what a step writes into the arena is what the
 * plan counts, the splice starts orthonormal and as its own transpose, and one as wide as
 * the latent changes nothing.
 */
#include "mixer_bench.h"

enum {
	R = CONFIG_MLA_LATENT_DIM,
	RC = CONFIG_MLA_KVSPLICE_DIM,
	HALVES = IS_ENABLED(CONFIG_MLA_KV2) ? 2 : 1,
};

/* A dot product of R terms near 1, in double; a float build rounds what it keeps. */
#define ORTHO_TOL (sizeof(grad_t) == sizeof(double) ? 1e-12 : 1e-6)

/* Bytes of a sequence's state that are no longer 0xFF. */
static size_t written(const struct bench *s)
{
	const unsigned char *p = s->cache;
	size_t elems = s->cache_bytes / sizeof(act_t), n = 0;

	for (size_t i = 0; i < elems; i++) {
		bool blank = true;

		for (size_t b = 0; b < sizeof(act_t); b++)
			blank &= p[i * sizeof(act_t) + b] == 0xFF;
		n += blank ? 0 : sizeof(act_t);
	}
	return n;
}

/* One sequence, every position: T_MAX rows of the size that is planned, and nothing else. */
static void cache_holds_what_is_planned(const struct mixer *x, unsigned int has)
{
	struct cache_size planned = x->cache(has);
	size_t latent = has ? RC : R, row = HALVES * latent + CONFIG_MLA_ROPE_DIM;
	act_t *y = xmalloc(sizeof(*y) * T_MAX * C);
	int32_t none[MB] = { 0 };
	struct bench s;

	bench_init(&s, x, has, true, 1, T_MAX);
	bench_decode(&s, none, y);
	ok(planned.token == row * sizeof(act_t) && written(&s) == planned.token * T_MAX,
	   "cache_holds_what_is_planned: %zu bytes a token, %zu written", planned.token, written(&s));
	free(y);
}

/* The last splice's tensor, whatever its sub-layer is called; NULL without a splice. */
static const struct param_entry *splice_tensor(const struct model *m, const char *leaf)
{
	char *tail = xasprintf(".kv_splice.%s", leaf);
	const struct param_entry *found = NULL;

	for (int i = 0; i < m->nr_entries; i++) {
		const char *name = m->entries[i].name;

		if (strlen(name) > strlen(tail) && !strcmp(name + strlen(name) - strlen(tail), tail))
			found = &m->entries[i];
	}
	free(tail);
	return found;
}

static grad_t *initial(const struct model *m, const char *leaf)
{
	const struct param_entry *e = splice_tensor(m, leaf);
	grad_t *x = NULL;

	if (e) {
		x = xmalloc(e->numel * sizeof(*x));
		e->p->init(e, 0, e->numel, x, 11);
	}
	return x;
}

/* Rows of each half are orthonormal, and expand is compress transposed. */
static void splice_starts_orthonormal(const grad_t *p, const grad_t *e)
{
	double worst = 0, apart = 0;

	for (int half = 0; half < HALVES; half++)
		for (int i = 0; i < RC; i++)
			for (int j = 0; j <= i; j++) {
				const grad_t *a = p + ((size_t)half * RC + i) * R;
				const grad_t *b = p + ((size_t)half * RC + j) * R;

				worst = MAX(worst, fabs(dot(a, b, R) - (i == j)));
			}
	for (int half = 0; half < HALVES && e; half++)
		for (int i = 0; i < R; i++)
			for (int j = 0; j < RC; j++)
				apart = MAX(apart, fabs(e[((size_t)half * R + i) * RC + j] -
							p[((size_t)half * RC + j) * R + i]));
	ok(worst <= ORTHO_TOL && !apart, "splice_starts_orthonormal (%.2g), expand its transpose (%.2g)",
	   worst, apart);
}

/* In order: row i lies in the span of the first i + 1 rows drawn, on their last one's side. */
static void splice_keeps_the_order(const struct model *m, const grad_t *p)
{
	const char *name = splice_tensor(m, "compress")->name;
	double across = 0, along = 1;

	for (int i = 0; i < RC; i++)
		for (int j = i; j < RC; j++) {
			double sum = 0;

			for (int l = 0; l < R; l++)
				sum += p[(size_t)j * R + l] *
				       rng_normal(11, hash_name(name), (uint64_t)i * R + l);
			if (j == i)
				along = MIN(along, sum);
			else
				across = MAX(across, fabs(sum));
		}
	ok(along > 0 && across <= 16 * ORTHO_TOL * sqrt(R), "splice_keeps_the_order (%.2g)", across);
}

/* y of the forward with the tensors of the splice as a run begins. */
static void splice_of_full_width_is_none(const struct mixer *x)
{
	struct bench with, without;
	const char *leaves[] = { "kv_splice.scale", "kv_splice.shift", "kv_splice.compress",
				 "kv_splice.expand" };
	struct model *m = xcalloc(1, sizeof(*m));

	model_layout(m);
	bench_init(&with, x, x->options(NL - 1), true, 1, T_MAX);
	bench_init(&without, x, 0, true, 1, T_MAX);
	for (int i = 0; i < x->nr_params; i++)
		for (size_t l = 0; l < ARRAY_SIZE(leaves); l++) {
			grad_t *start = strcmp(x->params[i].name, leaves[l]) ? NULL :
					initial(m, leaves[l] + strlen("kv_splice."));
			size_t elem = PARAM_ELEM(x->params[i].flags);
			char *w = (char *)with.a.w + x->params[i].offset;

			for (size_t k = 0; start && k < param_numel(&x->params[i]); k++)
				put(w, elem, k, start[k]);
			free(start);
		}
	bench_objective(&with);
	bench_objective(&without);
	ok(agree(with.a.y, without.a.y, ACT, (size_t)T_MAX * C, SAME_TOL),
	   "splice_of_full_width_is_none");
	free(m);
}

int main(void)
{
	const struct mixer *x = mixer_find("mla");
	struct model *m = xcalloc(1, sizeof(*m));
	grad_t *p, *e;

	device_open(1);
	if (!x) {
		ok(true, "latent cache and splice # SKIP needs mla");
		return tap_done();
	}
	cache_holds_what_is_planned(x, x->options(NL - 1));
	model_layout(m);
	p = initial(m, "compress");
	e = initial(m, "expand");
	if (p) {
		splice_starts_orthonormal(p, e);
		splice_keeps_the_order(m, p);
	}
	if (p && R == RC)
		splice_of_full_width_is_none(x);
	free(p);
	free(e);
	free(m);
	return tap_done();
}
