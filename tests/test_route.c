/* SPDX-License-Identifier: MIT */
/*
 * Routing: selection, gather and transposed gather against dense rows in double.
 */
#include "route_ref.h"

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
			worst = fmax(worst, fabs(get(c->weight.p, ACC, n * c->m.topk + j) -
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
		put(c->y.p, ACT, i, c->m.beta == 0 || (long)i % ld >= c->m.width ? NAN :
		    get(c->y0.p, ACT, i));
	pair_split(&c->pair, back ? c->x.p : c->y.p, ld);
	if (back) {
		k_route_gather_bwd(&c->route, c->y.p, ld, &c->pair.rows, c->m.width, c->m.alpha,
				   c->m.beta, c->scratch.p);
		arch_sync();
		return;
	}
	k_route_gather_fwd(&c->route, &c->pair.rows, c->x.p, ld, c->m.width, c->m.alpha,
			   c->m.beta, c->scratch.p);
	arch_sync();
	pair_join(&c->pair, c->y.p, ld);
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
			y[r * c->m.width + e] = c->m.beta * get(c->y0.p, ACT, r * ld + e);
	for (long r = 0; r < rows; r++)
		for (int set = 0; set < c->m.nr; set++)
			for (int v = 0; v <= r % c->s.t; v++) {
				x = c->m.alpha * c->sparse[(r * c->m.nr + set) * c->s.t + v];
				t = back ? r : r - r % c->s.t + v;
				u = back ? r - r % c->s.t + v : r;
				for (int e = set * own; e < (set + 1) * own; e++)
					y[u * c->m.width + e] += x * get(c->x.p, ACT, t * ld + e);
			}
	gather(c, back);
	worst = distance(y, c->y, rows, ld, 1, 0, c->m.width);
	free(y);
	return gaps_kept(c->y, rows, ld, c->m.width) && buf_guarded(c->y) ? worst : 1;
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
				memcpy(old + back * c->y.n, c->y.p, c->y.n * ACT);
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
	struct test c = test_new(s, m);
	double list = 0, fwd, bwd;
	bool clean, same, fits = k_route_scratch(s->b, s->t, m->nr, m->topk) <=
		ROUTE_SCRATCH_MAX(s->b, s->t, m->nr, m->topk);
	char name[160];

	k_route_build(&c.route, c.scratch.p);
	arch_sync();
	if (m->mode == ROUTE_TOPK)
		list = list_distance(&c);
	fwd = gather_distance(&c, false);
	bwd = gather_distance(&c, true);
	same = threads_agree(&c);
	clean = buf_guarded(c.weight) && buf_guarded(c.thr) && buf_guarded(c.inv) &&
		buf_guarded(c.scratch);
	name_rule(name, sizeof(name), s, m);
	if (!ok(fmax(list, fmax(fwd, bwd)) <= TOLERANCE && clean && same && fits,
		"route_matches_dense: %s", name))
		diag("lists %.2e, forward %.2e, backward %.2e, guards %s, threads %s, scratch %s",
		     list, fwd, bwd, clean ? "kept" : "overwritten", same ? "agree" : "differ",
		     fits ? "fits" : "is too large");
	test_free(&c);
}

int main(void)
{
	/* a loaded machine is slow with threads that wait: threads_agree() has some */
	device_open(1);
	each_rule(test_rule);
	return tap_done();
}
