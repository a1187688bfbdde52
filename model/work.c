// SPDX-License-Identifier: MIT
/*
 * Counting what a sub-layer executes.
 */
#include "mixer.h"
#include "util.h"

void work_product(struct work *w, int m, int n, int k, int count)
{
	w->flops += 2.0 * m * n * k * count;
	for (int i = 0; i < w->nr; i++) {
		struct product *p = &w->products[i];

		if (p->m == m && p->n == n && p->k == k) {
			p->count += count;
			return;
		}
	}
	w->products = xrealloc(w->products, (w->nr + 1) * sizeof(*w->products));
	w->products[w->nr++] = (struct product){ m, n, k, count };
}

void work_linear(struct work *w, int rows, int out, int in, bool backward)
{
	if (!backward) {
		work_product(w, rows, out, in, 1);
		return;
	}
	work_product(w, rows, in, out, 1);
	work_product(w, out, in, rows, 1);
}

void work_pairs(struct work *w, double pairs, double width)
{
	w->flops += 2 * pairs * width;
}

double causal_pairs(int b, int t, int window)
{
	double n = window < t ? window : t;

	return b * (n * (n + 1) / 2 + (t - n) * n);
}
