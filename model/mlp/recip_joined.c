// SPDX-License-Identifier: MIT
/*
 * The joined matrix of recip: filled from the tensors, one product forward, one for its
 * gradient, one for that of h0, and the chain rule back to the tensors. a's columns are
 * their owner's: they take part in the product forward, their gradient is his alone.
 */
#include "recip.h"

/* From above; NULL: not compiled in. */
const struct recip_part *const recip_parts[RECIP_PARTS] = {
	RECIP_GATE ? &recip_gate : NULL,
	RECIP_CROSS ? &recip_cross : NULL,
	RECIP_LATENT ? &recip_latent : NULL,
};

int recip_rows_above(const struct mixer_args *a, int i)
{
	int rows = C;

	for (int p = 0; p < i; p++)
		if (recip_parts[p] && recip_parts[p]->rows)
			rows += recip_parts[p]->rows(a, rows);
	return rows;
}

struct joined joined_shape(const struct mixer_args *a)
{
	struct joined j = { .a = a, .n = a->b * a->t, .rows = recip_rows_above(a, RECIP_PARTS), .cols = F };

	for_each_down(i)
		if (recip_parts[i] && recip_parts[i]->cols)
			j.cols += recip_parts[i]->cols(a);
	return j;
}

static bool is_c_proj(const struct joined *j)
{
	return j->rows == C && j->cols == F;
}

struct joined joined_call(const struct mixer_args *a, const act_t *y)
{
	struct joined j = joined_shape(a);
	const struct recip_param *w = a->w;
	struct recip_tmp *tmp = a->tmp;

	j.x = joined_x(a);
	j.w = is_c_proj(&j) ? w->c_proj[0] : (const param_t *)tmp->w;
	j.ldw = is_c_proj(&j) ? F : COLS;
	j.y = j.rows > C ? (const act_t *)tmp->y : y;
	j.ldy = j.rows > C ? ROWS : C;
	return j;
}

void joined_beside(const struct mixer_args *a)
{
	struct joined j = joined_call(a, NULL);

	for_each_down(i)
		CALL(i, beside, &j);
}

static size_t below_bytes(const struct joined *j)
{
	return sizeof(param_t) * (j->rows - C) * COLS;
}

/* Rows of the matrix from the tensors; saved but for c_proj's. */
static void joined_fill(const struct joined *j)
{
	const struct recip_param *w = j->a->w;
	struct recip_act *act = j->a->act;

	if (is_c_proj(j))
		return;
	k_axpby(joined_row(j, 0), COLS, w->c_proj[0], F, C, F, 1, 0);
	for_each_down(i)
		CALL_ROW(i, fill, j);
	arch_copy(act->below, joined_row(j, C), below_bytes(j));
}

/* The same in backward, but for the columns beside c_proj. */
static void joined_refill(const struct joined *j)
{
	const struct recip_param *w = j->a->w;
	const struct recip_act *act = j->a->act;

	if (is_c_proj(j))
		return;
	k_axpby(joined_row(j, 0), COLS, w->c_proj[0], F, C, F, 1, 0);
	arch_copy(joined_row(j, C), act->below, below_bytes(j));
}

/* c_proj's bias; the other rows have none. */
static const param_t *joined_bias(const struct joined *j)
{
	const struct recip_param *w = j->a->w;
	struct recip_tmp *tmp = j->a->tmp;
	param_t *bias = (param_t *)tmp->bias;

	if (!BIAS || j->rows == C)
		return BIAS ? w->c_proj_bias : NULL;
	arch_zero(bias, sizeof(*bias) * j->rows);
	arch_copy(bias, w->c_proj_bias, sizeof(*bias) * C);
	return bias;
}

void joined_fwd(const struct mixer_args *a)
{
	struct joined j = joined_call(a, a->y);

	joined_beside(a);
	joined_fill(&j);
	k_gemm(&(struct gemm){
		.m = j.n, .n = j.rows, .k = j.cols, .tb = true, .a = j.x, .lda = COLS, .b = j.w,
		.ldb = j.ldw, .c = j.rows > C ? joined_dy(&j, 0) : a->y, .ldc = j.ldy,
		.alpha = 1, .ep = GEMM_BIAS, .bias = joined_bias(&j) });
	if (j.rows > C)
		k_axpby(a->y, C, j.y, j.ldy, j.n, C, 1, 0);
	for_each_down(i)
		CALL_ROW(i, forward, &j);
	for_each_up(i)
		CALL_ROW(i, write, &j);
}

/* dw and c_proj_bias's gradient; the other rows' sums are not wanted. */
static void joined_dw(const struct joined *j)
{
	struct recip_tmp *tmp = j->a->tmp;
	grad_t *bias = RECIP_GRAD(j->a, c_proj_bias);
	grad_t *db = j->rows > C ? (grad_t *)tmp->bwd.db : bias;

	k_gemm_grad(&(struct gemm){
		.m = j->rows, .n = F, .k = j->n, .ta = true, .a = j->y, .lda = j->ldy, .b = j->x,
		.ldb = COLS, .c = j->dw, .ldc = F, .alpha = 1, .db = WITH_BIAS(db) });
	if (BIAS && db != bias)
		arch_copy(bias, db, sizeof(*db) * C);
}

void joined_bwd(const struct mixer_args *a, bool dgelu)
{
	struct joined j = joined_call(a, a->dy);
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	grad_t *dc_proj = RECIP_GRAD(a, c_proj);

	joined_refill(&j);
	j.dw = is_c_proj(&j) ? dc_proj : (grad_t *)tmp->bwd.dw;
	if (j.rows > C)
		k_axpby(joined_dy(&j, 0), ROWS, a->dy, C, j.n, C, 1, 0);
	for_each_down(i)
		CALL_ROW(i, backward, &j);
	joined_dw(&j);
	for_each_up(i)
		CALL_ROW(i, chain, &j);
	if (!is_c_proj(&j))
		arch_copy(dc_proj, j.dw, sizeof(*dc_proj) * C * F);
	k_gemm(&(struct gemm){
		.m = j.n, .n = F, .k = j.rows, .a = j.y, .lda = j.ldy, .b = j.w, .ldb = j.ldw,
		.c = tmp->bwd.dh[0], .ldc = F, .alpha = 1,
		.ep = dgelu ? GEMM_DGELU : GEMM_PLAIN, .aux = act->pre[0], .ldaux = F });
}
