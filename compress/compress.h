/* SPDX-License-Identifier: MIT */
/**
 * DOC: compressing the states of linear RNNs
 *
 * A state S [K][V] of a head is read as o = s S^T q. What of it is needed is learned on one
 * split (fit.c), what each way to keep less costs is measured on another (measure.c), and
 * ways that leave an ordinary gla are written as one (absorb.c). Everything is computed in
 * double from the operands of the recurrences (linear_rnn.h). Documentation/compress.md.
 */
#ifndef TENON_COMPRESS_H
#define TENON_COMPRESS_H

#include "kernels_linattn.h"
#include "util.h"
#include "../model/mixer/linear_rnn.h"
#include "../train/train.h"

enum {
	DRAWS = 8,		/* of a random basis */
	SNAPSHOTS = 2048,	/* states that the vectorised basis is made of */
	SPANS = T_MAX < 16 ? T_MAX : 16,	/* of positions */
};

/* ---- latent.c --------------------------------------------------------------------- */

/** enum row - what is kept of a state; latent.c has the recurrences */
enum row { ROW_VALUE, ROW_SCALAR, ROW_SELECT, ROW_GALERKIN, ROW_DIAGONAL, ROW_VECTORISED,
	   ROW_PROJECTED, NR_ROWS };

/** enum basis - where a way looks at a state from */
enum basis { BASIS_TOP, BASIS_BALANCED, BASIS_RANDOM, NR_BASES };

/**
 * struct rows - one head of one sequence
 * @t, @k, @v: positions, width of a key, of a value
 * @scale: of the outputs
 * @in: operands
 */
struct rows {
	int t, k, v;
	double scale;
	struct linattn_host in;
};

/** rows_get() - from a recurrence; rows_free() it */
struct rows rows_get(const struct linattn *mix, int i, int h);
void rows_free(struct rows *x);

/**
 * struct latent - one way for one head
 * @row: the recurrence
 * @d: width of the latent
 * @write: [d][k], of ROW_VALUE [d][v], of ROW_VECTORISED [d][k * v]
 * @read: [d][k]
 */
struct latent {
	enum row row;
	int d;
	const double *write, *read;
};

/** state_next() - S [k][v] from one position to the next */
void state_next(double *s, const struct rows *x, int t);

/** latent_run() - o[t][v] as the latent gives it; @l NULL: the whole state */
void latent_run(const struct latent *l, const struct rows *x, double *o);

/* ---- fit.c ------------------------------------------------------------------------ */

/**
 * struct head - what was learned of one head
 * @lambda_k: [k] eigenvalues of M_K, the mean of S S^T, the largest first
 * @lambda_q: [k] of C_q, the mean of q q^T
 * @lambda_v: [v] of M_V, the mean of S^T S
 * @top_k: [widest][k] eigenvectors of M_K
 * @top_v: [at most widest][v] of M_V
 * @write, @read: [widest][k] the balanced basis
 * @select: [widest][k] unit vectors of the channels with the largest C_q,ii M_K,ii
 * @vec: [widest][k * v] leading directions of SNAPSHOTS states as vectors
 */
struct head {
	double *lambda_k, *lambda_q, *lambda_v;
	double *top_k, *top_v, *write, *read, *select, *vec;
};

/**
 * struct site - one sub-layer with a linear state
 * @sub: its number
 * @mix: widths, heads, decay and scale; the pointers mean nothing
 * @head: [heads]
 * @random_k: [DRAWS] of [widest][k]
 * @random_v: [DRAWS] of [at most widest][v]
 */
struct site {
	int sub;
	struct linattn mix;
	struct head *head;
	double *random_k[DRAWS], *random_v[DRAWS];
};

/**
 * struct compress - one call of the verb
 * @m: in PHASE_EVAL, with the checkpoint's weights
 * @step: of the checkpoint
 * @samples: batches of each split
 * @dims: [nr_dims] widths asked for
 * @widest: the largest of them, and of absorb; bases have no more rows than dimensions
 * @fit, @test: splits
 * @full_fit, @full: losses there of the model as it is
 * @site: [nr_sites] in the order of the forward
 */
struct compress {
	struct model m;
	int64_t step;
	int samples, *dims, nr_dims, widest;
	enum split fit, test;
	struct eval full_fit, full;
	struct site site[NR_SUB];
	int nr_sites;
};

/** split_name() - as --split has it */
const char *split_name(enum split s);

/** compress_eval() - a split through the forward while @fn looks on; NULL: nobody */
void compress_eval(struct compress *c, enum split s, struct eval *e, linear_rnn_fn *fn, void *ctx);

/** compress_site() - the site whose recurrence this is; NULL for another one */
struct site *compress_site(struct compress *c, const struct mixer_args *a);

/** fit_sites() - find them, with full_fit; dies where there is none */
void fit_sites(struct compress *c);

/** fit_bases() - all of struct head, its vec only with @vec, and the random bases */
void fit_bases(struct compress *c, bool vec);

/* ---- measure.c -------------------------------------------------------------------- */

/**
 * struct way - one way at one width, for all heads
 * @row, @basis: what
 * @draw: of BASIS_RANDOM, 0 elsewhere
 * @d: width
 * @error: [sites][heads][SPANS] sums of |o - o~|^2, from site 0 on
 * @eval: losses with all heads compressed
 */
struct way {
	enum row row;
	enum basis basis;
	int draw, d;
	double *error;
	struct eval eval;
};

/**
 * struct measure - all of them
 * @c: the call
 * @way: [nr]
 * @first: [sites] index of a site's first head
 * @heads: in all
 * @square: [heads][SPANS] sums of |o|^2
 * @spread: [heads] sum of |S|^2 |q|^2, scale included
 */
struct measure {
	struct compress *c;
	struct way *way;
	int nr, *first, heads;
	double *square, *spread;
};

extern const char *const row_names[NR_ROWS], *const basis_names[NR_BASES];

/** measure_all() - errors of every way, then its losses; a line of text each */
void measure_all(struct measure *s, struct compress *c);

/**
 * struct summary - a way in the mean over its draws
 * @draws: DRAWS of BASIS_RANDOM, else 1
 * @error: of all heads, sum of |o - o~|^2 by that of |o|^2
 * @loss, @ppl, @acc: with all heads compressed
 */
struct summary {
	int draws;
	double error, loss, ppl, acc;
};

/** summarise() - @w: the first of its draws, which stand in a row */
struct summary summarise(const struct measure *s, const struct way *w);

/** latent_of() - a way for one head */
struct latent latent_of(const struct way *w, const struct site *site, int h);

/** random_error() - what BASIS_RANDOM costs a head in the mean over all bases; NAN: no formula */
double random_error(const struct measure *s, const struct way *w, const struct site *site,
		    int head);

/* ---- write.c, absorb.c -------------------------------------------------------------- */

/** write_json() - everything, as one object */
void write_json(const struct measure *s, const char *checkpoint, struct file_writer *f,
		const char *path);

/** absorb_check() - the row that --absorb names; refuses what this build cannot write as a gla */
enum row absorb_check(const char *name);

/** absorb_check_sites() - refuse widths that the model does not have, and other mixers */
void absorb_check_sites(const struct compress *c, enum row row, int d);

/** absorb_write() - the smaller checkpoint and its fragment, after fit_bases() */
void absorb_write(struct compress *c, enum row row, int d, const char *checkpoint, const char *out);

#endif
