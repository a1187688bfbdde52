/* SPDX-License-Identifier: MIT */
/*
 * Routing in decode, at other positions in every sequence, against dense rows in double.
 */
#include "route_ref.h"

/* gamma P of every head at positions pos, [b][heads][stride] */
static struct buf step_rows(const struct test *c, const int32_t *pos, long stride)
{
	struct buf p = buf_new_acc(c->s.b * c->s.heads * stride);
	double gamma;

	for (int i = 0; i < c->s.b; i++)
		for (int h = 0; h < c->s.heads; h++) {
			gamma = c->r.gamma[(i * c->s.t + pos[i]) * c->s.heads + h];
			for (int u = 0; u <= pos[i]; u++)
				put(p.p, ACC, (i * c->s.heads + h) * stride + u, gamma *
				    ref_p(&c->s, &c->r, i, h, pos[i])[c->m.ties ? u % 5 : u]);
		}
	return p;
}

/* What sequence i gets at position t, on top of beta y0. */
static void ref_gather_step(const struct test *c, double *want, int i, int t)
{
	long ld = c->m.width + GAP, own = c->m.width / c->m.nr;
	const double *sparse;

	for (int e = 0; e < c->m.width; e++) {
		sparse = c->sparse + row_of(c, i, t, e / own) * c->s.t;
		want[e] = c->m.beta == 0 ? 0 : c->m.beta * get(c->y0.p, ACT, i * ld + e);
		for (int u = 0; u <= t; u++)
			want[e] += c->m.alpha * sparse[u] *
				   get(c->x.p, ACT, (i * c->s.t + u) * ld + e);
	}
}

/* The decode forms at position pos[i] of each sequence. */
static double step_distance(struct test *c, const int32_t *pos)
{
	long ld = c->m.width + GAP, stride = c->s.t + GAP;
	struct buf p = step_rows(c, pos, stride), rows = buf_new_acc(c->s.b * c->m.nr * stride);
	struct pair y = pair_new(&c->m, c->s.b);
	double worst = 0, *want = dense(c->m.width);
	struct route_step r = {
		.b = c->s.b, .nr = c->m.nr, .mode = c->m.mode, .topk = c->m.topk, .tau = c->m.tau,
		.normalize = c->m.normalize, .pos = pos, .row = rows.p, .row_stride = stride,
	};
	struct cache_rows x = { c->x.p, c->s.t * ld, ld, 0, c->m.width };

	if (c->m.beta != 0)
		pair_split(&y, c->y0.p, ld);
	k_route_step(&r, p.p, stride, c->s.heads);
	k_route_gather_step(&r, &y.rows, &x, c->m.alpha, c->m.beta);
	arch_sync();
	pair_join(&y, c->y.p, ld);
	for (int i = 0; i < c->s.b; i++) {
		struct buf row = buf_part(rows, (size_t)i * c->m.nr * stride);

		ref_gather_step(c, want, i, pos[i]);
		worst = fmax(worst, distance(want, buf_part(c->y, i * ld), 1, 0, 1, 0,
						 c->m.width));
		for (int set = 0; set < c->m.nr; set++)
			worst = fmax(worst, distance(c->sparse + row_of(c, i, pos[i], set) * c->s.t,
						     buf_part(row, set * stride), 1, 0, 1, 0,
						     pos[i] + 1));
		if (!gaps_kept(row, c->m.nr, stride, pos[i] + 1))
			worst = 1;
	}
	if (!buf_guarded(rows))
		worst = 1;
	free(want);
	free(p.all);
	free(rows.all);
	pair_free(&y);
	return worst;
}

static void test_rule(const struct shape *s, const struct rule *m)
{
	struct test c = test_new(s, m);
	double worst = 0;
	char name[160];

	for (int t = 0; t < s->t; t += t < 3 ? 1 : 31)
		worst = fmax(worst, step_distance(&c, (int32_t[]){ t, (t + 29) % s->t }));
	name_rule(name, sizeof(name), s, m);
	if (!ok(worst <= TOLERANCE, "route_step_matches_dense: %s", name))
		diag("distance %.2e", worst);
	test_free(&c);
}

int main(void)
{
	/* a loaded machine is slow with threads that wait */
	device_open(1);
	each_rule(test_rule);
	return tap_done();
}
