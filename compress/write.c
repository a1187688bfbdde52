// SPDX-License-Identifier: MIT
/* What tenon compress found, as one JSON object. Documentation/compress.md has its members. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress.h"
#include "json.h"
#include "util.h"

static json_t *number(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

static json_t *numbers(const double *x, int n)
{
	json_t *list = json_array();

	for (int i = 0; i < n; i++)
		json_array_append_new(list, number(x[i]));
	return list;
}

static double sum(const double *x, int n)
{
	double total = 0;

	for (int i = 0; i < n; i++)
		total += x[i];
	return total;
}

/* ---- spectra ------------------------------------------------------------------------- */

/* Least r whose first eigenvalues have that share. */
static int rank_of(const double *energy, int n, double share)
{
	for (int r = 1; r < n; r++)
		if (energy[r - 1] >= share - 1e-12)
			return r;
	return n;
}

static json_t *spectrum(const double *lambda, int n)
{
	double *energy = xmalloc(sizeof(*energy) * n), all = sum(lambda, n), so_far = 0;
	double entropy = 0, squares = 0;
	json_t *root;

	for (int i = 0; i < n; i++) {
		double p = all > 0 ? lambda[i] / all : 0;

		energy[i] = so_far += p;
		entropy -= p > 0 ? p * log(p) : 0;
		squares += p * p;
	}
	root = json_pack("{s:o,s:o,s:i,s:i,s:i,s:o,s:o}", "lambda", numbers(lambda, n),
			 "energy", numbers(energy, n), "r90", rank_of(energy, n, 0.90),
			 "r95", rank_of(energy, n, 0.95), "r99", rank_of(energy, n, 0.99),
			 "entropy_rank", number(exp(entropy)), "participation", number(1 / squares));
	free(energy);
	return root;
}

static json_t *put_site(const struct compress *c, const struct site *site)
{
	static const char *const decay[] = {
		[LINATTN_VECTOR] = "vector", [LINATTN_SCALAR] = "scalar", [LINATTN_FIXED] = "fixed",
		[LINATTN_NONE] = "none",
	};
	const struct sublayer *sub = &c->m.sub[site->sub];
	int k = site->mix.dk, v = site->mix.dv;
	json_t *heads = json_array();

	for (int h = 0; h < site->mix.heads; h++) {
		const struct head *head = &site->head[h];

		json_array_append_new(heads, json_pack("{s:o,s:o,s:o}",
						       "M_K", spectrum(head->lambda_k, k),
						       "M_V", spectrum(head->lambda_v, v),
						       "C_q", spectrum(head->lambda_q, k)));
	}
	return json_pack("{s:i,s:s,s:s,s:i,s:i,s:o}", "layer", sub->layer, "mixer",
			 sub->mixer->name, "decay", decay[site->mix.decay], "K", k, "V", v,
			 "heads", heads);
}

/* ---- ways ----------------------------------------------------------------------------- */

static json_t *put_losses(double loss, double ppl, double acc)
{
	json_t *root = json_pack("{s:o,s:o}", "loss", number(loss), "ppl", number(ppl));

	if (SYNTHETIC)
		json_object_set_new(root, "acc", number(acc));
	return root;
}

/* Of @draws ways in a row the mean error of a head in spans [first, first + m). */
static json_t *mean_error(const struct measure *s, const struct way *w, int draws, int head,
			  int first, int m)
{
	double error = 0;

	for (int i = 0; i < draws; i++)
		error += sum(w[i].error + head * SPANS + first, m) / draws;
	return number(error / sum(s->square + head * SPANS + first, m));
}

static json_t *put_head(const struct measure *s, const struct way *w, int draws, int h)
{
	json_t *spans = json_array();

	for (int e = 0; e < SPANS; e++)
		json_array_append_new(spans, mean_error(s, w, draws, h, e, 1));
	return json_pack("{s:o,s:o}", "error", mean_error(s, w, draws, h, 0, SPANS), "spans", spans);
}

/* The heads of all sites, site by site. */
static json_t *put_heads(const struct measure *s, const struct way *w, int draws)
{
	json_t *sites = json_array();

	for (int i = 0; i < s->c->nr_sites; i++) {
		const struct site *site = &s->c->site[i];
		json_t *heads = json_array();

		for (int h = 0; h < site->mix.heads; h++) {
			json_t *head = put_head(s, w, draws, s->first[i] + h);
			double expected = random_error(s, w, site, s->first[i] + h);

			if (isfinite(expected))
				json_object_set_new(head, "expected", json_real(expected));
			json_array_append_new(heads, head);
		}
		json_array_append_new(sites, heads);
	}
	return sites;
}

static json_t *put_way(const struct measure *s, const struct way *w)
{
	double size = (double)s->c->site[0].mix.dk * s->c->site[0].mix.dv;
	struct summary m = summarise(s, w);
	json_t *root = put_losses(m.loss, m.ppl, m.acc);

	json_object_set_new(root, "row", json_string(row_names[w->row]));
	json_object_set_new(root, "basis", json_string(basis_names[w->basis]));
	json_object_set_new(root, "d", json_integer(w->d));
	json_object_set_new(root, "draws", json_integer(m.draws));
	json_object_set_new(root, "error", number(m.error));
	json_object_set_new(root, "heads", put_heads(s, w, m.draws));
	if (w->row == ROW_VECTORISED)	/* W twice, by a head of the first layer */
		json_object_set_new(root, "weights_read_a_step", json_real(2 * w->d * size));
	return root;
}

static json_t *put_ways(const struct measure *s)
{
	json_t *list = json_array();

	for (int i = 0; i < s->nr; i++)
		if (!s->way[i].draw)
			json_array_append_new(list, put_way(s, &s->way[i]));
	return list;
}

static json_t *put_split(enum split split, const struct eval *e)
{
	json_t *root = put_losses(e->loss, exp(e->loss), e->acc);

	json_object_set_new(root, "split", json_string(split_name(split)));
	json_object_set_new(root, "sequences", json_integer(e->rows));
	json_object_set_new(root, "positions", json_integer(T_MAX));
	return root;
}

void write_json(const struct measure *s, const char *checkpoint, struct file_writer *f,
		const char *path)
{
	const struct compress *c = s->c;
	json_t *sites = json_array(), *root;
	char *text;
	int err;

	for (int i = 0; i < c->nr_sites; i++)
		json_array_append_new(sites, put_site(c, &c->site[i]));
	root = json_pack("{s:s,s:I,s:s,s:s,s:o,s:o,s:o,s:o}", "checkpoint", checkpoint,
			 "step", (json_int_t)c->step, "config", config_text(),
			 "build", build_text(), "fit", put_split(c->fit, &c->full_fit),
			 "test", put_split(c->test, &c->full), "layers", sites,
			 "rows", put_ways(s));
	if (!root)
		die("compress: the path %s is no UTF-8; give the checkpoint another name", checkpoint);
	text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
	err = file_write(f, text, strlen(text));
	err = file_finish(f) ?: err;
	if (err)
		die("compress: cannot write %s: %s; make room or give another --out", path,
		    file_error(-err));
	free(text);
	json_decref(root);
}
