// SPDX-License-Identifier: MIT
/*
 * A compressed gla as a gla with smaller heads: its recurrence is that of the latent where
 * the matrices around it have absorbed the basis.
 *
 *	value           v_proj <- Y^T v_proj, o_proj <- o_proj Y of each head
 *	scalar, select  q_proj <- U^T q_proj, k_proj <- U^T k_proj; of vector decays those of the
 *	                chosen channels
 *
 * What stands between those matrices and the recurrence and is not linear is refused. Where
 * queries are scaled by K^(-1/2), the smaller heads would by d^(-1/2): q_proj takes sqrt(d/K).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress.h"
#include "lapack.h"
#include "safetensors.h"
#include "util.h"

static enum row row_named(const char *name)
{
	static const enum row rows[] = { ROW_VALUE, ROW_SCALAR, ROW_SELECT };

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (!strcmp(name, row_names[rows[i]]))
			return rows[i];
	die("compress: --absorb %s: value, scalar or select", name);
}

enum row absorb_check(const char *name)
{
	enum row row = row_named(name);
	const char *between = NULL;

	if (row == ROW_VALUE && IS_ENABLED(CONFIG_GLA_OUT_NORM))
		between = "GLA_OUT_NORM";
	else if (row == ROW_VALUE && IS_ENABLED(CONFIG_GLA_OUT_GATE))
		between = "GLA_OUT_GATE";
	else if (row != ROW_VALUE && IS_ENABLED(CONFIG_GLA_K_NORM))
		between = "GLA_K_NORM";
	else if (CONFIG_GLA_CONV > 0)
		between = "GLA_CONV";
	if (!IS_ENABLED(CONFIG_MIXER_GLA))
		die("compress: --absorb writes smaller heads of gla, and CONFIG_BLOCK=\"" CONFIG_BLOCK
		    "\" has none");
	if (between)
		die("compress: --absorb %s: CONFIG_%s stands between the matrices and the state; train "
		    "without it, or measure with --dims alone", name, between);
	if (row == ROW_SCALAR && IS_ENABLED(CONFIG_GLA_DECAY_VECTOR))
		die("compress: --absorb scalar: each channel of a key has a decay of its own "
		    "(CONFIG_GLA_DECAY=\"vector\"), which a basis would mix; use select or value");
	return row;
}

void absorb_check_sites(const struct compress *c, enum row row, int d)
{
	for (int i = 0; i < c->nr_sites; i++) {
		const struct sublayer *sub = &c->m.sub[c->site[i].sub];
		int most = row == ROW_VALUE ? c->site[i].mix.dv : c->site[i].mix.dk;

		if (strcmp(sub->mixer->name, "gla"))
			die("compress: --absorb is for gla alone, and layer %d has %s", sub->layer,
			    sub->mixer->name);
		if (d > most)
			die("compress: --dim %d is above the %d channels of a %s", d, most,
			    row == ROW_VALUE ? "value" : "key");
	}
}

/* ---- tensors ------------------------------------------------------------------------- */

/**
 * struct absorb - one checkpoint in the making
 * @row: the way
 * @d: width of its latents
 * @width: of what they replace
 */
struct absorb {
	struct compress *c;
	enum row row;
	int d, width;
};

/* y[heads * d][n] = each head's basis times x[heads * width][n] */
static void absorb_rows(const struct absorb *a, const struct site *site, double *y,
			const double *x, int n)
{
	struct way w = { .row = a->row, .basis = BASIS_TOP, .d = a->d };

	for (int h = 0; h < site->mix.heads; h++) {
		struct latent l = latent_of(&w, site, h);

		product(y + (long)h * a->d * n, l.write, a->width, 1, x + (long)h * a->width * n, a->d,
			n, a->width);
	}
}

/* The same of columns: x[m][heads * width]. */
static void absorb_columns(const struct absorb *a, const struct site *site, double *y,
			   const double *x, int m)
{
	int from = site->mix.heads * a->width, to = site->mix.heads * a->d;

	for (int i = 0; i < m; i++)
		absorb_rows(a, site, y + (long)i * to, x + (long)i * from, 1);
}

static bool one_of(const char *name, const char *const *list)
{
	while (*list && strcmp(name, *list))
		list++;
	return *list;
}

static bool has_rows(const struct absorb *a, const char *leaf)
{
	static const char *const values[] = { "v_proj.weight", NULL };
	static const char *const keys[] = { "q_proj.weight", "k_proj.weight", NULL };
	static const char *const decays[] = { "gk_proj.weight", "gk_proj.bias", "gk_proj.1.weight",
					      "gk_proj.1.bias", NULL };

	return one_of(leaf, a->row == ROW_VALUE ? values : keys) ||
	       (a->row == ROW_SELECT && IS_ENABLED(CONFIG_GLA_DECAY_VECTOR) && one_of(leaf, decays));
}

static bool has_columns(const struct absorb *a, const char *leaf)
{
	return a->row == ROW_VALUE && !strcmp(leaf, "o_proj.weight");
}

/* The site that a tensor belongs to, or NULL. */
static const struct site *site_of(const struct compress *c, const struct param_entry *e)
{
	for (int i = 0; i < c->nr_sites; i++) {
		const struct sublayer *sub = &c->m.sub[c->site[i].sub];

		if (e->offset >= sub->param && e->offset < sub->param + sub->elems)
			return &c->site[i];
	}
	return NULL;
}

static void transform(const struct absorb *a, const struct site *site, struct ckpt_tensor *t,
		      const char *leaf, size_t numel)
{
	bool columns = has_columns(a, leaf);
	int64_t *side = &t->shape[columns ? 1 : 0];
	size_t n = numel / a->width * a->d;
	double *x = xmalloc(sizeof(*x) * numel), *y = xcalloc(n, sizeof(*y)), scale = 1;

	for (size_t i = 0; i < numel; i++)
		x[i] = t->x[i];
	if (columns)
		absorb_columns(a, site, y, x, t->shape[0]);
	else
		absorb_rows(a, site, y, x, t->ndim > 1 ? t->shape[1] : 1);
	if (IS_ENABLED(CONFIG_GLA_Q_SCALE) && !strcmp(leaf, "q_proj.weight"))
		scale = sqrt((double)a->d / a->width);
	for (size_t i = 0; i < n; i++)
		t->x[i] = scale * y[i];
	*side = *side / a->width * a->d;
	free(y);
	free(x);
}

/* From the file, whose weights are not rounded as those of a bf16 model are. */
static struct ckpt_tensor read_tensor(struct st_file *f, const char *path,
				      const struct param_entry *e)
{
	const struct st_tensor *from = st_find(f, e->name);
	struct ckpt_tensor t = { .name = xstrdup(e->name), .ndim = e->p->ndim };
	int err;

	for (int i = 0; i < t.ndim; i++)
		t.shape[i] = e->p->dims[i];
	t.x = xmalloc(sizeof(*t.x) * e->numel);
	err = st_read(f, from, 0, t.x, sizeof(*t.x) * e->numel);
	if (err)
		die("compress: %s: tensor %s: %s", path, e->name, file_error(-err));
	return t;
}

static struct ckpt_tensor *make_tensors(const struct absorb *a, const char *checkpoint)
{
	const struct model *m = &a->c->m;
	char *folder = ckpt_find(checkpoint), *path = xasprintf("%s/model.safetensors", folder), *why;
	struct ckpt_tensor *t = xcalloc(m->nr_entries, sizeof(*t));
	struct st_file *f = st_open(path, &why);

	if (!f)
		die("compress: %s: %s", path, why);
	for (int i = 0; i < m->nr_entries; i++) {
		const struct param_entry *e = &m->entries[i];
		const struct site *site = site_of(a->c, e);

		t[i] = read_tensor(f, path, e);
		if (site && (has_rows(a, e->p->name) || has_columns(a, e->p->name)))
			transform(a, site, &t[i], e->p->name, e->numel);
	}
	st_close(f);
	free(path);
	free(folder);
	return t;
}

/* ---- configuration ---------------------------------------------------------------------- */

/* The text of ours with another value of a symbol that it has a line of. */
static char *with_line(const char *symbol, const char *line)
{
	char *word = xasprintf("\n%s=", symbol);
	const char *text = config_text(), *at = strstr(text, word);
	char *changed;

	if (!at)
		die_bug("compress: the configuration has no line of %s", symbol);
	at++;
	changed = xasprintf("%.*s%s%s", (int)(at - text), text, line, strchr(at, '\n') + 1);
	free(word);
	return changed;
}

void absorb_write(struct compress *c, enum row row, int d, const char *checkpoint, const char *out)
{
	const struct linattn *mix = &c->site[0].mix;
	struct absorb a = { c, row, d, row == ROW_VALUE ? mix->dv : mix->dk };
	const char *symbol = row == ROW_VALUE ? "CONFIG_GLA_VALUE_DIM" : "CONFIG_GLA_KEY_DIM";
	char *line = xasprintf("%s=%d\n", symbol, d), *config = with_line(symbol, line);
	struct ckpt_tensor *t = make_tensors(&a, checkpoint);

	ckpt_derive(checkpoint, out, config, t, c->m.nr_entries, line);
	printf("%s: %s of %d instead of %d; build with %s/absorbed.config on top to use it\n", out,
	       row == ROW_VALUE ? "values" : "keys", d, a.width, out);
	for (int i = 0; i < c->m.nr_entries; i++) {
		free(t[i].name);
		free(t[i].x);
	}
	free(t);
	free(config);
	free(line);
}
