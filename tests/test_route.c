/* SPDX-License-Identifier: MIT */
/*
 * Routing: selection, gather, transposed gather and their decode forms against dense
 * rows in double.
 */
#include <omp.h>
#include <string.h>

#include "attn_ref.h"

/* What is selected, beside the shape of the attention. */
struct rule {
	int nr;			/* 1, or heads */
	enum route_mode mode;
	int topk;
	double tau;
	bool normalize, ties;	/* ties: keys repeat with period 5, values of R too */
	int width;		/* of the gathered rows, a multiple of nr */
	double alpha, beta;
};

/* A case: the built route, its memory, and dense R and R^, [b][t][nr][t]. */
struct test {
	struct shape s;
	struct rule m;
	struct work w;
	struct ref r;
	struct route route;
	struct buf weight, thr, inv, scratch, x, y, y0;
	int32_t *index;
	double *dense, *sparse;
	double margin;	/* by which the closest selection was decided, relative */
};

/* Closer selections may turn out otherwise in the kernels: other inputs are drawn. */
#define CLEAR_MARGIN TOLERANCE

static long row_of(const struct test *c, int i, int t, int set)
{
	return ((long)i * c->s.t + t) * c->m.nr + set;
}

/* Is a before b among the largest? Ties: the smaller index. */
static int rank_of(const double *row, int n, int u)
{
	int rank = 0;

	for (int v = 0; v < n; v++)
		rank += row[v] > row[u] || (row[v] == row[u] && v < u);
	return rank;
}

/*
 * The rule of the specification on a dense row of n visible entries. Returns how
 * clear it was: the smallest relative distance of an entry from being selected or
 * not; exact ties are clear.
 */
static double ref_sparse(const struct rule *m, double *to, const double *row, int n)
{
	double squares = 0, sum = 0, edge = 0, gap, margin = 1;
	bool keep;

	for (int u = 0; u < n; u++)
		squares += row[u] * row[u];
	if (m->mode == ROUTE_RMS)
		edge = m->tau * sqrt(squares / n);
	for (int u = 0; m->mode == ROUTE_TOPK && u < n; u++)
		edge = rank_of(row, n, u) == m->topk - 1 ? row[u] : edge;
	for (int u = 0; u < n; u++) {
		keep = m->mode == ROUTE_TOPK ? rank_of(row, n, u) < m->topk :
			m->mode == ROUTE_RMS ? row[u] >= edge : true;
		gap = fabs(row[u] - edge) / edge;
		if (edge > 0 && gap > 0)
			margin = fmin(margin, gap);
		to[u] = keep ? row[u] : 0;
		sum += to[u];
	}
	for (int u = 0; u < n; u++)
		to[u] /= m->normalize ? fmax(sum, 1e-8) : 1;
	return margin;
}

/* One dense row of R: the gated heads of a set, averaged. */
static void ref_dense(struct test *c, int i, int set, int t, double *row)
{
	int h0 = c->m.nr == 1 ? 0 : set, h1 = c->m.nr == 1 ? c->s.heads : set + 1;
	const double *gamma = c->r.gamma + ((long)i * c->s.t + t) * c->s.heads;

	for (int h = h0; h < h1; h++)
		for (int u = 0; u <= t; u++)
			row[u] += gamma[h] * ref_p(&c->s, &c->r, i, h, t)[u] / (h1 - h0);
	/* equal keys give equal entries: exactly, as in the kernels */
	for (int u = 5; c->m.ties && u <= t; u++)
		row[u] = row[u - 5];
}

static void ref_rows(struct test *c)
{
	double margin, *row;
	long n = 0;

	c->margin = 1;
	for (int i = 0; i < c->s.b; i++)
		for (int t = 0; t < c->s.t; t++)
			for (int set = 0; set < c->m.nr; set++, n++) {
				row = c->dense + n * c->s.t;
				ref_dense(c, i, set, t, row);
				margin = ref_sparse(&c->m, c->sparse + n * c->s.t, row, t + 1);
				c->margin = fmin(c->margin, margin);
			}
}

static void repeat_keys(struct test *c)
{
	long width = (long)k_heads(&c->s) * c->s.dk, row;

	for (int i = 0; i < c->s.b; i++)
		for (int u = 5; u < c->s.t; u++) {
			row = (long)i * c->s.t + u;
			memcpy(c->w.k.p + row * c->w.a.k_row, c->w.k.p + (row - 5) * c->w.a.k_row,
			       width * sizeof(act_t));
			memcpy(c->r.k + row * width, c->r.k + (row - 5) * width,
			       width * sizeof(double));
		}
}

static struct test test_new(const struct shape *s, const struct rule *m)
{
	struct test c = { .s = *s, .m = *m, .w = work_new(s), .r = ref_new(s) };
	size_t rows = (size_t)s->b * s->t, sets = rows * m->nr;

	work_fill(s, &c.w, &c.r);
	for (size_t i = 0; s->gamma && i < rows * s->heads; i++) {	/* as a gate is */
		c.w.gamma.p[i] = (act_t)(0.75 + 0.25 * c.w.gamma.p[i]);
		c.r.gamma[i] = c.w.gamma.p[i];
	}
	if (m->ties)
		repeat_keys(&c);
	ref_forward(s, &c.r);
	k_attn_fwd(&c.w.a);
	c.dense = dense(sets * s->t);
	c.sparse = dense(sets * s->t);
	ref_rows(&c);
	c.weight = buf_new(sets * m->topk);
	c.index = xcalloc(sets * m->topk, sizeof(*c.index));
	c.thr = buf_new(sets);
	c.inv = buf_new(sets);
	c.scratch = buf_new(k_route_scratch(s->b, s->t, m->nr, m->topk));
	c.x = buf_new(rows * (m->width + GAP));
	c.y = buf_new(rows * (m->width + GAP));
	c.y0 = buf_new(rows * (m->width + GAP));
	for (size_t i = 0; i < c.x.n; i++) {
		c.x.p[i] = (act_t)uniform();
		c.y0.p[i] = (act_t)uniform();
	}
	c.route = (struct route) {
		.a = c.w.a, .nr = m->nr, .mode = m->mode, .topk = m->topk, .tau = m->tau,
		.normalize = m->normalize, .index = c.index, .weight = c.weight.p,
		.thr = c.thr.p, .inv = c.inv.p,
	};
	c.route.a.v = NULL;	/* not used */
	c.route.a.o = NULL;
	return c;
}

static void test_free(struct test *c)
{
	struct buf all[] = { c->weight, c->thr, c->inv, c->scratch, c->x, c->y, c->y0 };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(all[i].all);
	free(c->index);
	free(c->dense);
	free(c->sparse);
	work_free(&c->w);
	ref_free(&c->r);
}

/* topk: the lists say what the dense rule says. */
static double list_distance(const struct test *c)
{
	long rows = (long)c->s.b * c->s.t * c->m.nr;
	double worst = 0, *row;
	int kept, t, u, last;

	for (long n = 0; n < rows; n++) {
		t = n / c->m.nr % c->s.t;
		row = c->sparse + n * c->s.t;
		kept = MIN(c->m.topk, t + 1);
		last = -1;
		for (int j = 0; j < c->m.topk; j++) {
			u = c->index[n * c->m.topk + j];
			if (j < kept ? u <= last || u > t : u != -1)
				return 1;
			worst = fmax(worst, fabs(c->weight.p[n * c->m.topk + j] -
						 (j < kept ? row[u] : 0)));
			last = u;
		}
	}
	return worst;
}

static void gather(struct test *c, bool back)
{
	long ld = c->m.width + GAP;

	for (size_t i = 0; i < c->y.n; i++)	/* beta 0 must not read */
		c->y.p[i] = c->m.beta == 0 || (long)i % ld >= c->m.width ? NAN : c->y0.p[i];
	(back ? k_route_gather_bwd : k_route_gather_fwd)(&c->route, c->y.p, ld, c->x.p, ld,
		c->m.width, c->m.alpha, c->m.beta, c->scratch.p);
}

/* y of the dense rule against the kernel's. */
static double gather_distance(struct test *c, bool back)
{
	long ld = c->m.width + GAP, rows = (long)c->s.b * c->s.t;
	double *y = dense(rows * c->m.width), worst, x;
	int own = c->m.width / c->m.nr;
	long t, u;

	for (long r = 0; r < rows; r++)
		for (int e = 0; e < c->m.width && c->m.beta != 0; e++)
			y[r * c->m.width + e] = c->m.beta * c->y0.p[r * ld + e];
	for (long r = 0; r < rows; r++)
		for (int set = 0; set < c->m.nr; set++)
			for (int v = 0; v <= r % c->s.t; v++) {
				x = c->m.alpha * c->sparse[(r * c->m.nr + set) * c->s.t + v];
				t = back ? r : r - r % c->s.t + v;
				u = back ? r - r % c->s.t + v : r;
				for (int e = set * own; e < (set + 1) * own; e++)
					y[u * c->m.width + e] += x * c->x.p[t * ld + e];
			}
	gather(c, back);
	worst = distance(y, c->y.p, rows, ld, 1, 0, c->m.width);
	free(y);
	return gaps_kept(c->y.p, rows, ld, c->m.width) && buf_guarded(c->y) ? worst : 1;
}

/* The decode forms at position t; p is gamma P of every head. */
static double step_distance(struct test *c, int t)
{
	long ld = c->m.width + GAP, stride = c->s.t + GAP, own = c->m.width / c->m.nr;
	struct buf p = buf_new(c->s.b * c->s.heads * stride), y = buf_new(c->s.b * ld);
	struct buf rows = buf_new(c->s.b * c->m.nr * stride);
	double worst = 0, *want = dense(c->m.width), *sparse, gamma;
	struct route route = c->route;

	route.row = rows.p;
	route.row_stride = stride;
	for (int i = 0; i < c->s.b; i++)
		for (int h = 0; h < c->s.heads; h++) {
			gamma = c->r.gamma[(i * c->s.t + t) * c->s.heads + h];
			for (int u = 0; u <= t; u++)
				p.p[(i * c->s.heads + h) * stride + u] = (act_t)(gamma *
					ref_p(&c->s, &c->r, i, h, t)[c->m.ties ? u % 5 : u]);
		}
	for (long e = 0; e < c->s.b * ld && c->m.beta != 0; e++)
		y.p[e] = e % ld < c->m.width ? c->y0.p[e] : NAN;
	k_route_step(&route, p.p, stride, c->s.b, c->s.heads, t);
	k_route_gather_step(&route, y.p, ld, c->x.p, c->s.t * ld, ld, c->s.b, c->m.width, t,
			    c->m.alpha, c->m.beta);
	for (int i = 0; i < c->s.b; i++) {
		for (int e = 0; e < c->m.width; e++) {
			sparse = c->sparse + row_of(c, i, t, e / own) * c->s.t;
			want[e] = c->m.beta == 0 ? 0 : c->m.beta * c->y0.p[i * ld + e];
			for (int u = 0; u <= t; u++)
				want[e] += c->m.alpha * sparse[u] *
					c->x.p[(i * c->s.t + u) * ld + e];
		}
		worst = fmax(worst, distance(want, y.p + i * ld, 1, 0, 1, 0, c->m.width));
		for (int set = 0; set < c->m.nr; set++)
			worst = fmax(worst, distance(c->sparse + row_of(c, i, t, set) * c->s.t,
				rows.p + (i * c->m.nr + set) * stride, 1, 0, 1, 0, t + 1));
	}
	if (!gaps_kept(rows.p, c->s.b * c->m.nr, stride, t + 1) || !buf_guarded(y))
		worst = 1;
	free(want);
	free(p.all);
	free(y.all);
	free(rows.all);
	return worst;
}

/* Build and both gathers with 1, 2 and 3 threads: the same bits. */
static bool threads_agree(struct test *c)
{
	act_t *old = xmalloc(2 * c->y.n * sizeof(act_t));
	int most = omp_get_max_threads();
	bool same = true;

	for (int n = 1; n <= 3; n++) {
		omp_set_num_threads(n);
		k_route_build(&c->route, c->scratch.p);
		for (int back = 0; back < 2; back++) {
			gather(c, back);
			if (n == 1)
				memcpy(old + back * c->y.n, c->y.p, c->y.n * sizeof(act_t));
			same = same && !memcmp(old + back * c->y.n, c->y.p,
					       c->y.n * sizeof(act_t));
		}
	}
	omp_set_num_threads(most);
	free(old);
	return same;
}

static void test_rule(const struct shape *s, const struct rule *m)
{
	static const char *const mode[] = { "none", "topk", "rms" };
	struct test c = test_new(s, m);
	double list = 0, fwd, bwd, step = 0;
	bool clean, same;

	while (c.margin < CLEAR_MARGIN) {
		test_free(&c);
		c = test_new(s, m);
	}
	k_route_build(&c.route, c.scratch.p);
	if (m->mode == ROUTE_TOPK)
		list = list_distance(&c);
	fwd = gather_distance(&c, false);
	bwd = gather_distance(&c, true);
	for (int t = 0; t < s->t; t += t < 3 ? 1 : 31)
		step = fmax(step, step_distance(&c, t));
	same = threads_agree(&c);
	clean = buf_guarded(c.weight) && buf_guarded(c.thr) && buf_guarded(c.inv) &&
		buf_guarded(c.scratch);
	if (!ok(fmax(fmax(list, fwd), fmax(bwd, step)) <= TOLERANCE && clean && same,
		"route_matches_dense: %s k %d nr %d of %d heads t %d%s%s%s ra %g width %d beta %g",
		mode[m->mode], m->topk, m->nr, s->heads, s->t, m->normalize ? " normalize" : "",
		m->ties ? " ties" : "", s->gamma ? " gamma" : "", s->ra_scale, m->width, m->beta))
		diag("lists %.2e, forward %.2e, backward %.2e, step %.2e, guards %s, threads %s",
		     list, fwd, bwd, step, clean ? "kept" : "overwritten",
		     same ? "agree" : "differ");
	test_free(&c);
}

int main(void)
{
	static const int length[] = { 1, 5, 64, 65, 150 };
	static const int topk[] = { 8, 1, 3, 70 };
	struct shape s;
	struct rule m;
	int n = 0;

	/* a loaded machine is slow with threads that wait: threads_agree() has some */
	omp_set_num_threads(1);
	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (int mode = ROUTE_NONE; mode <= ROUTE_RMS; mode++)
			for (int variant = 0; variant < 8; variant++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l], .heads = n % 3 ? 3 : 1,
					.dk = n % 5 ? 16 : 7, .dv = 4, .one_k = n % 4 < 3,
					.one_v = true, .gamma = n % 7 < 4,
					.ra_scale = n % 3 == 1 ? 0.2 : 0, .window = n % 2 ? 7 : 90,
				};
				m = (struct rule) {
					.nr = variant & 1 ? s.heads : 1, .mode = mode,
					.topk = mode == ROUTE_TOPK ? topk[n % 4] : 0, .tau = 0.5,
					.normalize = variant & 2,
					/* a reciprocal term would tell equal keys apart */
					.ties = variant & 4 && s.ra_scale == 0 &&
						mode == ROUTE_TOPK,
					.width = (n % 2 ? 5 : 300) * s.heads, .alpha = 0.3,
					.beta = n % 5 == 0 ? 0 : n % 5 == 1 ? 1 : -0.7,
				};
				test_rule(&s, &m);
			}
	return tap_done();
}
