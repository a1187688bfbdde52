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
 *
 * Attention and optimizer have headers of their own, included here. Kernels that only
 * some mixers use stand in headers of theirs, and are linked where a mixer selects
 * them: kernels_route.h (HAVE_ROUTE), kernels_gate.h (HAVE_GATE), kernels_couple.h
 * (HAVE_COUPLE), kernels_stats.h (HAVE_STATS), kernels_moe.h (HAVE_MOE), kernels_rope.h
 * (HAVE_ROPE), kernels_splice.h (HAVE_SPLICE), kernels_swiglu.h (HAVE_SWIGLU),
 * kernels_linattn.h (HAVE_LINATTN), kernels_conv.h (HAVE_CONV).
 */
#ifndef TENON_KERNELS_H
#define TENON_KERNELS_H

#include "kernels_attn.h"
#include "kernels_optim.h"
#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- workspace ------------------------------------------------------------ */

/** k_workspace() - bytes of device memory that the libraries behind the kernels want */
size_t k_workspace(void);

/** k_workspace_use() - @mem: k_workspace() bytes at TENSOR_ALIGN, theirs until the arena goes */
void k_workspace_use(void *mem);

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
 * @c: result: act_t for k_gemm(), acc_t for k_gemm_acc(), grad_t for k_gemm_grad()
 * @ldc: row stride of c, which may be a slice of columns of something wider
 * @alpha: factor
 * @beta: 0 overwrites (c may hold anything, NaN too)
 * @batch: independent products, 0 means 1
 * @sa: stride of a from product to product; 0: all products share it
 * @sb: of b
 * @sc: of c
 * @ep: epilogue (k_gemm() with batch <= 1 only); needs beta 0
 * @bias: [n], or NULL for none
 * @aux: [m][n]: written by GEMM_BIAS_GELU, read by GEMM_DGELU
 * @ldaux: row stride of aux
 * @db: k_gemm_grad() with ta and batch <= 1: NULL, or [m] gets the bias's gradient, the
 *	sum of the rows of a [k][m], with neither alpha nor beta
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
	long ldaux;
	grad_t *db;
};

/** k_gemm() - product with an activation result */
void k_gemm(const struct gemm *g);

/** k_gemm_acc() - product whose result is not rounded to act_t */
void k_gemm_acc(const struct gemm *g);

/** k_gemm_grad() - product with a gradient result (a weight's gradient) */
void k_gemm_grad(const struct gemm *g);

/**
 * k_weights_rest() - until the next call nothing that is started writes to @bytes at @from
 * @from: NULL: nothing rests
 *
 * In what arch_replay() records, where all that was started before it is done: a product may
 * read a b that begins there while the kernel in front of it runs.
 */
void k_weights_rest(const void *from, size_t bytes);

/**
 * k_cast() - dst[i] = src[i], rounded to nearest even: weights from their masters, or a
 * gradient as an operand of further products
 */
void k_cast(param_t *dst, const grad_t *src, size_t n);

/** k_widen() - dst[i] = src[i], exactly */
void k_widen(acc_t *dst, const act_t *src, size_t n);

/* ---- norm ---------------------------------------------------------------- */

/**
 * struct norm - xn = w * (xo - mean) * rstd + bias, xo = x + y
 * @n: rows
 * @c: columns
 * @rms: RMSNorm: the mean is 0 and there is no bias (Zhang and Sennrich 2019,
 *	arXiv 1910.07467); else LayerNorm (Ba et al. 2016, arXiv 1607.06450)
 * @epsilon: rstd = 1 / sqrt(mean square of (xo - mean) + epsilon)
 * @x: [n][c]
 * @y: [n][c] or NULL: nothing is added and @xo is not written (may be NULL)
 * @xo: [n][c]; may be @x
 * @xn: [n][c]
 * @mean: [n]; NULL with @rms
 * @rstd: [n]
 * @w: [c]
 * @bias: [c]; NULL with @rms
 */
struct norm {
	int n, c;
	bool rms;
	double epsilon;
	const act_t *x, *y;
	act_t *xo, *xn;
	acc_t *mean, *rstd;
	const acc_t *w, *bias;
};

/** k_add_norm_fwd() - the residual add and the norm in one pass */
void k_add_norm_fwd(const struct norm *a);

/**
 * k_norm_bwd() - dx = dres + the gradient of the norm's input
 * @a: as in forward; @a->x is the norm's input (xo of forward), y, xo and xn are not used
 * @dx: [n][c]
 * @dres: [n][c] gradient of the residual stream behind the norm, or NULL for 0; may be @dx
 * @dxn: [n][c] gradient of the norm's output
 * @dw: [c]
 * @db: [c]; NULL with rms
 */
void k_norm_bwd(const struct norm *a, act_t *dx, const act_t *dres, const act_t *dxn, grad_t *dw,
		grad_t *db);

/* ---- act: element-wise --------------------------------------------------- */

/**
 * k_gelu_fwd() - h[i] = gelu(pre[i]), tanh form; may run in place
 *
 * The bits of GEMM_BIAS_GELU with that aux, but in bf16 a GPU's library takes the GELU of what
 * it has not rounded to aux yet.
 */
void k_gelu_fwd(act_t *h, const act_t *pre, size_t n);

/** k_gelu_bwd() - dpre[i] = dh[i] gelu'(pre[i]); @dpre may be @dh */
void k_gelu_bwd(act_t *dpre, const act_t *pre, const act_t *dh, size_t n);

/**
 * k_axpby() - y[i][j] = alpha x[i][j] + beta y[i][j], of activations or weights
 * @y: [n][c], row stride @ldy
 * @x: [n][c], row stride @ldx
 * @beta: 0 overwrites
 *
 * Rows may be slices of columns of something wider.
 */
void k_axpby(act_t *y, long ldy, const act_t *x, long ldx, int n, int c, double alpha,
	     double beta);

/**
 * struct draw - what makes the random numbers of a micro-batch its own
 * @seed: of the run
 * @micro: number of the micro-batch, over all ranks
 */
struct draw {
	uint64_t seed, micro;
};

/**
 * k_dropout() - y[i] = x[i] / (1 - p), or with probability p 0
 * @n: elements; element 4 i + j is kept where word j of Philox(seed, stream, micro *
 *	ceil(most / 4) + i) is at least floor(p 2^32)
 * @most: most elements that a micro-batch has
 * @p: 0 <= p < 1
 * @stream: hash_name() of whose output it is
 * @d: device
 *
 * May run in place. Srivastava et al. 2014.
 */
void k_dropout(act_t *y, const act_t *x, size_t n, size_t most, double p, uint64_t stream,
	       const struct draw *d);

/** k_sum_grad() - older[i] += newer[i], one merge of the accumulation tree */
void k_sum_grad(grad_t *older, const grad_t *newer, size_t n);

/* ---- cache: rows of decode state ------------------------------------------ */

/**
 * struct cache_rows - rows of @width elements by position, of several sequences
 * @base: row of position u of sequence i at base + i * seq + u * row, or with
 *	@slots at base + i * seq + (u % slots) * row
 * @seq: stride from sequence to sequence
 * @row: stride from row to row
 * @slots: length of a ring, 0 = none
 * @width: elements of a row
 */
struct cache_rows {
	act_t *base;
	long seq, row;
	int slots, width;
};

/**
 * k_cache_put() - row pos[i] of sequence i = src row i
 * @src: [b][width], row stride @ld
 * @pos: [b]
 */
void k_cache_put(const struct cache_rows *c, const act_t *src, long ld, const int32_t *pos, int b);

/**
 * k_cache_fill() - rows 0..len[i] - 1 of sequence i (of a ring: the last of them) from a
 * forward
 * @src: [b][t][width], row stride @ld
 * @len: [b], 1..t; other rows are not written
 */
void k_cache_fill(const struct cache_rows *c, const act_t *src, long ld, const int32_t *len, int b,
		  int t);

/**
 * k_last_rows() - dst[i] = row len[i] - 1 of sequence i
 * @dst: [b][c]
 * @src: [b][t][c]
 * @len: [b], 1..t
 */
void k_last_rows(act_t *dst, const act_t *src, const int32_t *len, int b, int t, int c);

/* ---- vocab: embedding and loss ------------------------------------------- */

/**
 * k_embed_fwd() - x[i][j] = wte[tok] + wpe[position]
 * @x: [b][t][c]
 * @tok: [b][t] token ids
 * @pos: [b] position of j = 0 of each sequence, or NULL for 0
 * @wte: [vocabulary][c]
 * @wpe: [positions][c], or NULL: nothing is added
 */
void k_embed_fwd(act_t *x, const int32_t *tok, const int32_t *pos, const param_t *wte,
		 const param_t *wpe, int b, int t, int c);

/** k_embed_scratch() - bytes of scratch that k_embed_bwd() wants, for splitting long runs */
size_t k_embed_scratch(int b, int t, int c);

/**
 * k_embed_bwd() - dwte (+)= dx summed over stably sorted tokens; dwpe overwritten
 * @dwte: [vocabulary][c], already holds the head's part (tied) or zeros
 * @dwpe: [t_max][c], rows from t on get 0; NULL without positions
 * @dx: [b][t][c]
 * @tok: [b][t], as in forward
 * @order: [b t] rows (sequence * t + position) stably sorted by their token
 * @t_max: rows of dwpe
 * @scratch: k_embed_scratch() bytes
 */
void k_embed_bwd(grad_t *dwte, grad_t *dwpe, const act_t *dx, const int32_t *tok,
		 const int32_t *order, int b, int t, int t_max, int c, void *scratch);

/**
 * k_xent() - cross-entropy of rows of logits, and their gradient in place
 * @loss: [n] per row; 0 where the target is -1
 * @logits: [n][v]; with @grad overwritten by (softmax - one_hot) / *scored, padded
 *	columns 0; a row whose target is -1 gets 0
 * @target: [n], -1: the row is not scored
 * @n: rows
 * @v: padded vocabulary
 * @vocab: real vocabulary; columns from here on count as minus infinity
 * @scored: device: rows of the whole batch that are scored (1 where none is)
 * @grad: false: logits stay
 */
void k_xent(acc_t *loss, act_t *logits, const int32_t *target, int n, int v, int vocab,
	    const int32_t *scored, bool grad);

/** k_mask_padding() - logits[n][v] of columns from @vocab on become minus infinity */
void k_mask_padding(acc_t *logits, int n, int v, int vocab);

/**
 * k_argmax() - best[i] = the column below @vocab of the largest x[i][], of several the first
 * @best: [n]; 0 where no number of the row is above minus infinity
 * @x: [n][v]; NaN is above nothing
 */
void k_argmax(int32_t *best, const acc_t *x, int n, int v, int vocab);

/** k_loss_mean() - *dst = sum of x[n] / *scored, in double in a fixed order */
void k_loss_mean(double *dst, const acc_t *x, int n, const int32_t *scored);

#ifdef __cplusplus
}
#endif

#endif
