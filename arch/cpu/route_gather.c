// SPDX-License-Identifier: MIT
/*
 * Gathering along routing rows. topk: the lists; backward sorts their entries by
 * u first. none and rms: the tiles of the rows once more, as left operands. Sums run in
 * acc_t, and are rounded once where the result is act_t.
 */
#include <assert.h>
#include <string.h>

#include "route.h"

enum {
	COLS = 256,	/* columns that a thread takes at a time */
	KEYS = 16,	/* positions u of a task of the transposed gather */
};

/* A group of columns of the moving ends: out (y or dx) from in (x or dy). */
struct columns {
	void *out;
	size_t out_size;	/* of an element: that of act_t or of acc_t */
	long ldo;
	const void *in;
	size_t in_size;
	long ldi;
	int width;	/* columns of a row set */
};

struct gather {
	const struct route *r;
	struct columns part[2];
	int parts;
	acc_t alpha, beta;
};

/* Column @c of position @pos. */
static void *gather_out(const struct gather *g, const struct columns *p, int i, int pos, int set,
			int c)
{
	long at = ((long)i * g->r->a.t + pos) * p->ldo + (long)set * p->width + c;

	return (char *)p->out + at * (long)p->out_size;
}

static const void *gather_in(const struct gather *g, const struct columns *p, int i, int pos,
			     int set, int c)
{
	long at = ((long)i * g->r->a.t + pos) * p->ldi + (long)set * p->width + c;

	return (const char *)p->in + at * (long)p->in_size;
}

/* y += factor x */
static void add_row(acc_t *y, const void *x, size_t size, int n, acc_t factor)
{
	const acc_t *wide = x;
	const act_t *narrow = x;

	if (size == sizeof(acc_t))
		for (int c = 0; c < n; c++)
			y[c] += factor * wide[c];
	else
		for (int c = 0; c < n; c++)
			y[c] += factor * load(narrow[c]);
}

/* ---- none, rms ---- */

/* p of a tile to alpha R^: entries below the threshold are dropped. */
static void tile_weights(struct route_tile *w, const struct gather *g, int i, int set, int t0,
			int u0)
{
	const struct route *r = g->r;
	int nt = attn_rows(&r->a, t0);
	acc_t thr, factor;
	long row;

	route_tile_fill(w, r, i, set, t0, u0);
	for (int t = 0; t < nt; t++) {
		row = route_row(r, i, set, t0 + t);
		thr = r->thr[row];
		factor = g->alpha * r->inv[row];
		for (int u = 0; u < TILE; u++)
			w->p[t][u] = w->p[t][u] >= thr ? factor * w->p[t][u] : 0;
	}
}

/* Sums of the rows [TILE] of some columns: in the result, or beside it. */
struct sums {
	acc_t *x;
	long ld;
};

/* Elements of a thread's scratch for them. */
static size_t sums_size(const struct gather *g)
{
	size_t n = 0;

	for (int p = 0; p < g->parts; p++)
		n += g->part[p].out_size == sizeof(acc_t) ? 0 : TILE * g->part[p].width;
	return n;
}

static struct sums sums_of(const struct route_tile *w, const struct gather *g, int p, int i,
			   int set, int o)
{
	const struct columns *part = &g->part[p];
	acc_t *own = w->rest + TILE * COLS + (p ? TILE * g->part[0].width : 0);

	if (part->out_size == sizeof(acc_t))
		return (struct sums){ gather_out(g, part, i, o, set, 0), part->ldo };
	return (struct sums){ own, part->width };
}

/*
 * One tile's part of some columns: rows [o, o + no) += p rows [n, n + nn) of in, p
 * transposed where out stands at the keys. The first part of a row overwrites where
 * beta is 0.
 */
static void tile_apply(struct route_tile *w, const struct gather *g, const struct columns *p,
		       const struct sums *s, int i, int set, int o, int n, bool transposed,
		       bool first)
{
	int no = attn_rows(&g->r->a, o), nn = attn_rows(&g->r->a, n), cols;
	const void *in;

	for (int c = 0; c < p->width; c += cols) {
		cols = MIN(COLS, p->width - c);
		in = gather_in(g, p, i, n, set, c);
		if (p->in_size == sizeof(acc_t))
			tile_pack_acc(w->rest, in, p->ldi, nn, cols);
		else
			tile_pack(w->rest, in, p->ldi, nn, cols);
		tile_mul(&(struct tile_mul) {
			.m = no, .n = cols, .k = nn, .b = w->rest, .ldb = tile_width(cols),
			.a = w->p[0], .a_row = transposed ? 1 : TILE,
			.a_col = transposed ? TILE : 1,
			.c = s->x + c, .ldc = s->ld, .add = !first || g->beta != 0,
			.shape = o != n ? TILE_FULL : transposed ? TILE_A_UPPER : TILE_A_LOWER,
		});
	}
}

/* The tile of queries t0 and keys u0: weights once, for all columns. */
static void tile_gather(struct route_tile *w, const struct gather *g, int i, int set, int t0,
			int u0, bool transposed, bool first, bool last)
{
	int o = transposed ? u0 : t0, n = transposed ? t0 : u0, no = attn_rows(&g->r->a, o);
	const struct columns *part;
	struct sums s;

	tile_weights(w, g, i, set, t0, u0);
	for (int p = 0; p < g->parts; p++) {
		part = &g->part[p];
		s = sums_of(w, g, p, i, set, o);
		for (int t = 0; first && g->beta != 0 && t < no; t++)
			sums_begin(gather_out(g, part, i, o + t, set, 0), part->out_size,
				   s.x + t * s.ld, part->width, g->beta);
		tile_apply(w, g, part, &s, i, set, o, n, transposed, first);
		for (int t = 0; last && t < no; t++)
			sums_end(gather_out(g, part, i, o + t, set, 0), s.x + t * s.ld,
				 part->width);
	}
}

/* y of queries t0, over their keys; or dx of keys u0, over their queries. */
static void gather_dense(const struct gather *g, bool transposed)
{
	int blocks = attn_blocks(&g->r->a), sets = g->r->nr, t = g->r->a.t, own;
	struct route_tile w;

#pragma omp parallel for collapse(3) schedule(dynamic) private(w, own)
	for (int n = 0; n < blocks; n++) {
		for (int i = 0; i < g->r->a.b; i++) {
			for (int set = 0; set < sets; set++) {
				route_tile_open(&w, g->r, TILE * COLS + sums_size(g));
				own = (transposed ? n : blocks - 1 - n) * TILE;	/* longest first */
				for (int u0 = 0; !transposed && u0 <= own; u0 += TILE)
					tile_gather(&w, g, i, set, own, u0, false, u0 == 0,
						    u0 == own);
				for (int t0 = own; transposed && t0 < t; t0 += TILE)
					tile_gather(&w, g, i, set, t0, own, true, t0 == own,
						    t0 + TILE >= t);
			}
		}
	}
}

/* ---- topk ---- */

/* y of one t and columns [c, c + cols) of a part */
static void list_gather(const struct gather *g, const struct columns *p, int i, int t, int set,
			int c, int cols)
{
	long row = route_row(g->r, i, set, t) * g->r->topk;
	const int32_t *index = g->r->index + row;
	void *y = gather_out(g, p, i, t, set, c);
	acc_t buf[COLS], *sum;

	sum = sums_begin(y, p->out_size, buf, cols, g->beta);
	for (int j = 0; j < g->r->topk && index[j] >= 0; j++)
		add_row(sum, gather_in(g, p, i, index[j], set, c), p->in_size, cols,
			g->alpha * g->r->weight[row + j]);
	sums_end(y, sum, cols);
}

/* The same for all columns. */
static void list_gather_row(const struct gather *g, const struct columns *p, int i, int t,
			    int set)
{
	for (int c = 0; c < p->width; c += COLS)
		list_gather(g, p, i, t, set, c, MIN(COLS, p->width - c));
}

static void gather_lists(const struct gather *g)
{
	const struct route *r = g->r;

#pragma omp parallel for collapse(2)
	for (int i = 0; i < r->a.b; i++)
		for (int t = 0; t < r->a.t; t++)
			for (int set = 0; set < r->nr; set++)
				for (int p = 0; p < g->parts; p++)
					list_gather_row(g, &g->part[p], i, t, set);
}

/* COLS columns at a time, the last ones fewer */
static int chunks(const struct columns *p)
{
	return (p->width + COLS - 1) / COLS;
}

/* int32 of a sorted list: where each u starts, then t * topk + slot of each entry. */
static size_t list_size(int t, int topk)
{
	return (size_t)t + 1 + (size_t)t * topk;
}

/* Counting sort of the entries of one sequence and row set by u; t stays ascending. */
static void list_sort(const struct route *r, int i, int set, int32_t *start)
{
	int32_t *entry = start + r->a.t + 1, u;

	memset(start, 0, (r->a.t + 1) * sizeof(*start));
	for (int pass = 0; pass < 2; pass++) {
		for (int t = 0; t < r->a.t; t++) {
			for (int j = 0; j < r->topk; j++) {
				u = r->index[route_row(r, i, set, t) * r->topk + j];
				if (u < 0)
					break;
				if (pass)
					entry[start[u]++] = t * r->topk + j;
				else
					start[u + 1]++;
			}
		}
		for (int v = 0; !pass && v < r->a.t; v++)
			start[v + 1] += start[v];
	}
	/* placing moved each start to its end, which is the next one's start */
	memmove(start + 1, start, r->a.t * sizeof(*start));
	start[0] = 0;
}

/* dx of one u and columns [c, c + cols) of a part */
static void list_sum(const struct gather *g, const struct columns *p, int i, int set,
		     const int32_t *start, int u, int c, int cols)
{
	const int32_t *entry = start + g->r->a.t + 1;
	void *dx = gather_out(g, p, i, u, set, c);
	int topk = g->r->topk, t, slot;
	acc_t weight, buf[COLS], *sum;

	sum = sums_begin(dx, p->out_size, buf, cols, g->beta);
	for (int e = start[u]; e < start[u + 1]; e++) {
		t = entry[e] / topk;
		slot = entry[e] % topk;
		weight = g->r->weight[route_row(g->r, i, set, t) * topk + slot];
		add_row(sum, gather_in(g, p, i, t, set, c), p->in_size, cols,
			g->alpha * weight);
	}
	sums_end(dx, sum, cols);
}

/* dx of KEYS positions from u0 on, in the chunk-th COLS columns of the parts */
static void list_chunk(const struct gather *g, int i, int set, const int32_t *start, int u0,
		       int chunk)
{
	const struct columns *p = g->part;
	int c;

	if (chunk >= chunks(p)) {
		chunk -= chunks(p);
		p++;
	}
	c = chunk * COLS;
	for (int u = u0; u < MIN(u0 + KEYS, g->r->a.t); u++)
		list_sum(g, p, i, set, start, u, c, MIN(COLS, p->width - c));
}

static void gather_lists_back(const struct gather *g, int32_t *lists)
{
	const struct route *r = g->r;
	size_t size = list_size(r->a.t, r->topk);
	int all = chunks(&g->part[0]) + (g->parts > 1 ? chunks(&g->part[1]) : 0);

#pragma omp parallel
	{
#pragma omp for collapse(2)
		for (int i = 0; i < r->a.b; i++)
			for (int set = 0; set < r->nr; set++)
				list_sort(r, i, set, lists + (i * r->nr + set) * size);
#pragma omp for collapse(4) schedule(dynamic)
		for (int i = 0; i < r->a.b; i++)
			for (int set = 0; set < r->nr; set++)
				for (int u0 = 0; u0 < r->a.t; u0 += KEYS)
					for (int chunk = 0; chunk < all; chunk++)
						list_chunk(g, i, set,
							   lists + (i * r->nr + set) * size, u0,
							   chunk);
	}
}

/* ---- interface ---- */

size_t k_route_scratch(int b, int t, int nr, int topk)
{
	return topk ? b * nr * list_size(t, topk) * sizeof(int32_t) : 0;
}

void k_route_gather_fwd(const struct route *r, const struct route_rows *y, const act_t *x,
			long ldx, int width, double alpha, double beta, void *scratch)
{
	struct gather g = {
		.r = r, .parts = y->wide ? 2 : 1, .alpha = alpha, .beta = beta,
		.part = { { y->x, sizeof(act_t), y->ld, x, sizeof(act_t), ldx,
			    y->width / r->nr },
			  { y->wide, sizeof(acc_t), y->wide_ld, x + y->width, sizeof(act_t),
			    ldx, y->wide_width } },
	};

	assert(width == y->width + (y->wide ? y->wide_width : 0));
	(void)scratch;
	if (r->mode == ROUTE_TOPK)
		gather_lists(&g);
	else
		gather_dense(&g, false);
}

void k_route_gather_bwd(const struct route *r, act_t *dx, long lddx, const struct route_rows *dy,
			int width, double alpha, double beta, void *scratch)
{
	struct gather g = {
		.r = r, .parts = dy->wide ? 2 : 1, .alpha = alpha, .beta = beta,
		.part = { { dx, sizeof(act_t), lddx, dy->x, sizeof(act_t), dy->ld,
			    dy->width / r->nr },
			  { dx + dy->width, sizeof(act_t), lddx, dy->wide, sizeof(acc_t),
			    dy->wide_ld, dy->wide_width } },
	};

	assert(width == dy->width + (dy->wide ? dy->wide_width : 0));
	if (r->mode == ROUTE_TOPK)
		gather_lists_back(&g, scratch);
	else
		gather_dense(&g, true);
}
