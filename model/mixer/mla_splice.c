// SPDX-License-Identifier: MIT
/*
 * KVSplice: a learned bottleneck between mla's latent and what is cached of it.
 *
 *     sigma = softplus(scale);  z = P (c sigma + shift) [RC];  ĉ = (E z - shift) / sigma
 *
 * ĉ takes the place of c in training and inference alike, and decode keeps z. P starts with
 * orthonormal rows and E as its transpose (tied: it stays that), sigma as 1, shift as 0.
 * Documentation/kvsplice.md.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "mla.h"
#include "util.h"

/* What one row's error weighs: a mean over spliced sub-layers, halves and tokens. */
static double error_weight(int rows)
{
	int n = 0;

	for (int layer = 0; layer < NL; layer++)
		n += mla_options(layer) ? mixer_times("mla", layer) : 0;
	return CONFIG_MLA_KVSPLICE_RECON / n / HALVES / rows;
}

/* ---- initial values -------------------------------------------------------------- */

/* softplus gives 1 */
void init_splice_scale(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
		       uint64_t seed)
{
	(void)e, (void)first, (void)seed;
	for (size_t i = 0; i < n; i++)
		dst[i] = log(M_E - 1);
}

/* x -= <x, q> q for each earlier row q */
static void deflate(double *x, const double *rows, int nr)
{
	for (int i = 0; i < nr; i++) {
		const double *q = rows + (size_t)i * R;
		double dot = 0;

		for (int j = 0; j < R; j++)
			dot += x[j] * q[j];
		for (int j = 0; j < R; j++)
			x[j] -= dot * q[j];
	}
}

/*
 * Rows [RC][R] in order: Gram and Schmidt, twice, which leaves them orthogonal to round-off
 * (Giraud et al. 2005, Numerische Mathematik 101).
 */
static void orthonormalise(double *rows)
{
	for (int i = 0; i < RC; i++) {
		double *x = rows + (size_t)i * R, norm = 0;

		deflate(x, rows, i);
		deflate(x, rows, i);
		for (int j = 0; j < R; j++)
			norm += x[j] * x[j];
		norm = sqrt(norm);
		for (int j = 0; j < R; j++)
			x[j] /= norm;
	}
}

/* P, half by half, of the stream of the tensor @name: malloc'd [HALVES][RC][R] */
static double *draw_compress(const char *name, uint64_t seed)
{
	size_t n = (size_t)HALVES * RC * R;
	double *p = xmalloc(n * sizeof(*p));
	uint64_t stream = hash_name(name);

	for (size_t i = 0; i < n; i++)
		p[i] = rng_normal(seed, stream, i);
	for (int half = 0; half < HALVES; half++)
		orthonormalise(p + (size_t)half * RC * R);
	return p;
}

void init_compress(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	double *p = draw_compress(e->name, seed);

	(void)first;
	for (size_t i = 0; i < n; i++)
		dst[i] = p[i];
	free(p);
}

/* The transpose of compress of the same layer. */
void init_expand(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	size_t stem = strlen(e->name) - strlen("expand");
	char *name = xasprintf("%.*scompress", (int)stem, e->name);
	double *p = draw_compress(name, seed);

	(void)first, (void)n;
	for (int half = 0; half < HALVES; half++)
		for (int row = 0; row < R; row++)
			for (int col = 0; col < RC; col++)
				*dst++ = p[((size_t)half * RC + col) * R + row];
	free(p);
	free(name);
}

/* ---- forward --------------------------------------------------------------------- */

struct splice mla_splice_of(const struct mla_param *w, int half, int n)
{
	return (struct splice){ .n = n, .r = R, .scale = w->scale + half * R,
				.shift = w->shift + half * R };
}

static const param_t *compress_of(const struct mla_param *w, int half)
{
	return (const param_t *)w->compress + (size_t)half * RC * R;
}

/* E [R][RC]; tied it is compress, transposed */
static const param_t *expand_of(const struct mla_param *w, int half)
{
	return TIED_SPLICE ? compress_of(w, half) :
			     (const param_t *)w->expand + (size_t)half * R * RC;
}

struct gemm mla_splice_expand(const struct mla_param *w, int half)
{
	return (struct gemm){ .n = R, .k = RC, .tb = !TIED_SPLICE, .lda = RC,
			      .b = expand_of(w, half), .ldb = TIED_SPLICE ? R : RC, .ldc = R,
			      .alpha = 1 };
}

/* y[n][RC], row stride @ld, = x[n][R] E */
static void times_expand(const struct mla_param *w, int half, act_t *y, long ld, const act_t *x,
			 int n)
{
	k_gemm(&(struct gemm){ .m = n, .n = RC, .k = R, .tb = TIED_SPLICE, .a = x, .lda = R,
			       .b = expand_of(w, half), .ldb = TIED_SPLICE ? R : RC, .c = y,
			       .ldc = ld, .alpha = 1 });
}

/* ĉ[n][R] from z[n][RC] */
static void splice_out(const struct mla_param *w, int half, act_t *chat, const act_t *z, int n)
{
	struct splice map = mla_splice_of(w, half, n);
	struct gemm g = mla_splice_expand(w, half);

	g.m = n;
	g.a = z;
	g.c = chat;
	k_gemm(&g);
	k_splice_out(chat, chat, &map);
}

void mla_splice_fwd(const struct mla_rows *s, int half)
{
	struct splice map = mla_splice_of(s->w, half, s->n);

	k_splice_in(s->u, s->c[half], &map);
	linear_fwd(s->z[half], s->u, compress_of(s->w, half), s->n, RC, R, 1, 0);
	if (s->chat[half])
		splice_out(s->w, half, s->chat[half], s->z[half], s->n);
}

void mla_splice_aux(const struct mixer_args *a, const struct mla_rows *s)
{
	for (int half = 0; half < HALVES; half++)
		k_splice_error(a->aux, 1, s->c[half], s->chat[half], error_weight(s->n), s->n, R);
}

/* ---- backward -------------------------------------------------------------------- */

/* From de [n][R]: dz, and the gradient of E; tied it goes to P, transposed. */
static void expand_bwd(const struct mixer_args *a, const struct mla_rows *s, int half,
		       const act_t *de, act_t *dz)
{
	grad_t *dw = TIED_SPLICE ? GRAD(a->dw, struct mla_param, compress) :
				   GRAD(a->dw, struct mla_param, expand);

	dw += (size_t)half * RC * R;
	times_expand(a->w, half, dz, RC, de, s->n);
	if (TIED_SPLICE)
		linear_dw(dw, NULL, s->z[half], de, s->n, RC, R, 1, 0);
	else
		linear_dw(dw, NULL, de, s->z[half], s->n, R, RC, 1, 0);
}

void mla_splice_bwd(const struct mixer_args *a, const struct mla_rows *s, int half)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;
	struct splice map = mla_splice_of(w, half, s->n);
	act_t *dchat = tmp->dlatent[half][0], *dc = tmp->dc[half][0], *dz = (act_t *)tmp->dz;
	act_t *c = s->c[half], *chat = s->chat[half];
	bool recon = CONFIG_MLA_KVSPLICE_RECON_NONZERO;

	if (recon)
		k_splice_error_bwd(dc, dchat, c, chat, error_weight(s->n), s->n, R);
	k_splice_divide(s->u, dchat, &map);
	expand_bwd(a, s, half, s->u, dz);
	k_splice_in(s->u, c, &map);
	linear_dw(GRAD(a->dw, struct mla_param, compress) + (size_t)half * RC * R, NULL, dz, s->u,
		  s->n, RC, R, 1, TIED_SPLICE);
	linear_dx(s->u, dz, compress_of(w, half), s->n, RC, R, 1, 0);
	k_splice_grad(GRAD(a->dw, struct mla_param, scale) + half * R,
		      GRAD(a->dw, struct mla_param, shift) + half * R, c, s->u, chat, dchat, &map);
	k_splice_multiply(dc, s->u, recon, &map);
}

/* ---- decode ---------------------------------------------------------------------- */

/* The shift adds the same to the score of every key. */
void mla_splice_absorb(const struct mla_param *w, act_t *y, long ld, act_t *q, int n)
{
	struct splice map = mla_splice_of(w, 0, n);

	k_splice_divide(q, q, &map);
	times_expand(w, 0, y, ld, q, n);
}

void mla_splice_return(const struct mla_param *w, act_t *y, const act_t *z, int n)
{
	splice_out(w, HALVES - 1, y, z, n);
}

/* ---- metrics --------------------------------------------------------------------- */

int mla_splice_metrics(const struct mixer_args *a, struct metric *out)
{
	struct mla_act *act = a->act;
	struct mla_tmp *tmp = a->tmp;
	int n = a->b * a->t;
	double error;

	if (!(a->has & SPLICED))
		return 0;
	for (int half = 0; half < HALVES; half++)
		k_splice_error(tmp->error, half, act->c[half][0],
			       (act_t *)(act->chat + half), 1.0 / HALVES / n, n, R);
	arch_get(&error, tmp->error, sizeof(error));
	out[0] = (struct metric){ "splice_error", error };
	return 1;
}

void mla_splice_work(struct work *w, int n, bool backward, bool chat)
{
	work_linear(w, n, RC, R, backward);
	if (chat)
		work_linear(w, n, R, RC, backward);
}
