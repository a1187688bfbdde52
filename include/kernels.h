/* SPDX-License-Identifier: MIT */
/**
 * DOC: kernels
 *
 * Every computation on device memory. arch/cpu/X.c and arch/cuda/X.cu define the
 * same functions; one set is linked. All are asynchronous, take device pointers,
 * keep a fixed order of summation (the same bits for any number of threads) and
 * check nothing: shapes were checked when the model was configured. Matrices are
 * row-major; n is a number of rows (b*t where rows are positions), strides are in
 * elements. Unless said otherwise outputs are overwritten and alias no input.
 * Attention and optimizer have headers of their own, included here.
 */
#ifndef TENON_KERNELS_H
#define TENON_KERNELS_H

#include "kernels_attn.h"
#include "kernels_optim.h"
#include "types.h"

/* ---- gemm ---------------------------------------------------------------- */

enum gemm_epilogue {
	GEMM_PLAIN,
	GEMM_BIAS,		/* + bias[n] */
	GEMM_BIAS_GELU,		/* aux = acc + bias; c = gelu(aux) */
	GEMM_DGELU,		/* c = acc * gelu'(aux) */
};

/**
 * struct gemm - c = alpha op(a) op(b) + beta c, then the epilogue
 * @m: rows of c
 * @n: columns of c
 * @k: inner dimension
 * @ta: false: a is [m][k]; true: a is [k][m]
 * @tb: false: b is [k][n]; true: b is [n][k] (a weight, [out][in])
 * @a: left matrix, act_t or param_t
 * @lda: row stride of a
 * @b: right matrix, act_t or param_t
 * @ldb: row stride of b
 * @c: result; act_t for k_gemm(), grad_t for k_gemm_grad()
 * @ldc: row stride of c
 * @alpha: factor
 * @beta: 0 overwrites (c may hold anything, NaN too)
 * @batch: independent products, 0 means 1
 * @sa: stride of a from product to product
 * @sb: of b
 * @sc: of c
 * @ep: epilogue (k_gemm() with batch <= 1 only); needs beta 0
 * @bias: [n]
 * @aux: [m][n], row stride ldc: written by GEMM_BIAS_GELU, read by GEMM_DGELU
 */
struct gemm {
	int m, n, k;
	bool ta, tb;
	const void *a;
	long lda;
	const void *b;
	long ldb;
	void *c;
	long ldc;
	double alpha, beta;
	int batch;
	long sa, sb, sc;
	enum gemm_epilogue ep;
	const param_t *bias;
	act_t *aux;
};

/** k_gemm() - product with an activation result */
void k_gemm(const struct gemm *g);

/** k_gemm_grad() - product with a gradient result (a weight's gradient) */
void k_gemm_grad(const struct gemm *g);

/**
 * k_bias_grad() - db[c] = sum of the rows of dy[n][c]
 */
void k_bias_grad(grad_t *db, const act_t *dy, int n, int c);

/* ---- norm ---------------------------------------------------------------- */

/**
 * k_add_norm_fwd() - xo = x + y; xn = LayerNorm(xo) * w + bias, epsilon 1e-5
 * @xo: [n][c]; may be @x
 * @xn: [n][c]
 * @mean: [n]
 * @rstd: [n], 1 / sqrt(variance + epsilon)
 * @x: [n][c]
 * @y: [n][c] or NULL: nothing is added and @xo is not written (may be NULL)
 * @w: [c]
 * @bias: [c]
 */
void k_add_norm_fwd(act_t *xo, act_t *xn, acc_t *mean, acc_t *rstd, const act_t *x,
		    const act_t *y, const param_t *w, const param_t *bias, int n, int c);

/**
 * k_norm_bwd() - backward of LayerNorm, added to the residual gradient
 * @dx: [n][c], += the gradient of the norm's input
 * @dw: [c]
 * @db: [c]
 * @dxn: [n][c] gradient of the norm's output
 * @x: [n][c] the norm's input
 * @mean: [n]
 * @rstd: [n]
 * @w: [c]
 */
void k_norm_bwd(act_t *dx, grad_t *dw, grad_t *db, const act_t *dxn, const act_t *x,
		const acc_t *mean, const acc_t *rstd, const param_t *w, int n, int c);

/* ---- act: element-wise --------------------------------------------------- */

/** k_gelu_fwd() - h[i] = gelu(pre[i]), tanh form; may run in place */
void k_gelu_fwd(act_t *h, const act_t *pre, size_t n);

/** k_gelu_bwd() - dpre[i] = dh[i] gelu'(pre[i]); @dpre may be @dh */
void k_gelu_bwd(act_t *dpre, const act_t *pre, const act_t *dh, size_t n);

/** k_axpby() - y[i] = alpha x[i] + beta y[i]; beta 0 overwrites */
void k_axpby(act_t *y, const act_t *x, size_t n, double alpha, double beta);

/** k_sum_grad() - older[i] += newer[i], one merge of the accumulation tree */
void k_sum_grad(grad_t *older, const grad_t *newer, size_t n);

/* ---- gate: MLP to attention heads ---------------------------------------- */

/**
 * k_causal_mean_fwd() - zbar_t = mean of z_0..z_t inside each sequence
 * @zbar: [b][t][c]; may be @z
 * @z: [b][t][c]
 */
void k_causal_mean_fwd(act_t *zbar, const act_t *z, int b, int t, int c);

/** k_causal_mean_bwd() - dz[b][t][c] from dzbar; may run in place */
void k_causal_mean_bwd(act_t *dz, const act_t *dzbar, int b, int t, int c);

/** k_sequence_mean_fwd() - zbar_t = mean of z over all t of the sequence: leaks the future */
void k_sequence_mean_fwd(act_t *zbar, const act_t *z, int b, int t, int c);

/** k_sequence_mean_bwd() - dz[b][t][c] from dzbar; may run in place */
void k_sequence_mean_bwd(act_t *dz, const act_t *dzbar, int b, int t, int c);

/** k_head_gate_fwd() - gamma[i] = (1 - alpha) + alpha sigmoid(z[i]); may run in place */
void k_head_gate_fwd(act_t *gamma, const act_t *z, size_t n, double alpha);

/**
 * k_head_gate_bwd() - dz[i] = dgamma[i] alpha g (1 - g)
 *
 * g is sigmoid, recovered from @gamma (alpha 0 gives dz 0). @dz may be @dgamma.
 */
void k_head_gate_bwd(act_t *dz, const act_t *gamma, const act_t *dgamma, size_t n, double alpha);

/* ---- couple: per-head scalars between latent and MLP hidden --------------- */

/**
 * k_couple_up_fwd() - h[r][f] += alpha p[f heads / fdim] a[r][f mod l]
 * @h: [n][fdim]
 * @a: [n][l], l divides fdim
 * @p: [heads]
 */
void k_couple_up_fwd(act_t *h, const act_t *a, const param_t *p, int n, int fdim, int l,
		     int heads, double alpha);

/**
 * k_couple_up_bwd() - dp[heads], and where @da is not NULL da[n][l], from dh[n][fdim]
 */
void k_couple_up_bwd(grad_t *dp, act_t *da, const act_t *dh, const act_t *a, const param_t *p,
		     int n, int fdim, int l, int heads, double alpha);

/**
 * k_couple_down_fwd() - c[r][j] = (l/fdim) sum over f mod l = j of r[f heads / fdim] h[r][f]
 * @c: [n][l]
 * @h: [n][fdim]
 * @s: [heads]
 */
void k_couple_down_fwd(act_t *c, const act_t *h, const param_t *s, int n, int fdim, int l, int heads);

/** k_couple_down_bwd() - ds[heads]; dh[n][fdim] += its share of dc[n][l] */
void k_couple_down_bwd(grad_t *ds, act_t *dh, const act_t *dc, const act_t *h, const param_t *s,
		       int n, int fdim, int l, int heads);

/* ---- stats: what is logged, not trained on ---------------------------------- */

/**
 * struct stats - of the elements of a tensor, summed in double in a fixed order
 * @mean: their mean
 * @rms: root of their mean square
 * @min: smallest
 * @max: largest
 */
struct stats {
	double mean, rms, min, max;
};

/**
 * k_stats() - of x[n], n >= 1
 * @dst: device
 */
void k_stats(struct stats *dst, const act_t *x, size_t n);

/**
 * k_attn_entropy() - -sum_u P_u log P_u of every row, in nats
 * @a: as after k_attn_fwd(); v and o are not used
 * @entropy: [b*t][heads]
 *
 * Recomputes the scores tile by tile.
 */
void k_attn_entropy(const struct attn *a, act_t *entropy);

/* ---- vocab: embedding and loss ------------------------------------------- */

/**
 * k_embed_fwd() - x[i][j] = wte[tok] + wpe[pos + j]
 * @x: [b][t][c]
 * @tok: [b][ld] token ids; the first t of each row are used
 * @ld: row stride of tok
 * @wte: [vocabulary][c]
 * @wpe: [positions][c]
 * @pos: position of j = 0
 */
void k_embed_fwd(act_t *x, const int32_t *tok, int ld, const param_t *wte, const param_t *wpe,
		 int b, int t, int pos, int c);

/**
 * k_embed_bwd() - dwte += dx summed over stably sorted tokens; dwpe overwritten
 * @dwte: [vocabulary][c], already holds the head's part
 * @dwpe: [t_max][c]; rows from t on get 0
 * @dx: [b][t][c]
 * @tok: as in forward
 * @ld: row stride of tok
 * @t_max: rows of dwpe
 * @order: scratch, [2 b t]
 */
void k_embed_bwd(grad_t *dwte, grad_t *dwpe, const act_t *dx, const int32_t *tok, int ld, int b,
		 int t, int t_max, int c, int32_t *order);

/**
 * k_xent() - cross-entropy of rows of logits, and their gradient in place
 * @loss: [n] per row
 * @logits: [n][v]; with dscale != 0 overwritten by dscale * (softmax - one_hot),
 *	padded columns 0
 * @target: row r's target is target[r / t * ld + r % t]
 * @t: rows of a sequence
 * @ld: row stride of the targets
 * @row0: number of the first row (chunks of a batch): r counts from row0
 * @n: rows
 * @v: padded vocabulary
 * @vocab: real vocabulary; columns from here on count as minus infinity
 * @dscale: factor of the gradient, 0: logits stay
 */
void k_xent(acc_t *loss, act_t *logits, const int32_t *target, int t, int ld, int row0, int n,
	    int v, int vocab, double dscale);

/** k_mask_padding() - logits[n][v] of columns from @vocab on become minus infinity */
void k_mask_padding(act_t *logits, int n, int v, int vocab);

/** k_mean() - *dst = mean of x[n], summed in double in a fixed order */
void k_mean(double *dst, const acc_t *x, int n);

#endif
