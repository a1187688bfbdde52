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
 */
#ifndef TENON_KERNELS_H
#define TENON_KERNELS_H

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

/* ---- attn ---------------------------------------------------------------- */

/**
 * struct attn - causal softmax attention, blocked, with an online softmax
 * @b: sequences
 * @t: positions
 * @heads: query heads
 * @dk: width of a query and a key
 * @dv: width of a value and an output
 * @q: element (i, h, e) at q[i * q_row + h * q_head + e], i = sequence * t + position
 * @q_row: row stride of q
 * @q_head: head stride of q
 * @k: as q; k_head 0: one key for all heads
 * @k_row: row stride of k
 * @k_head: head stride of k
 * @v: as q, width dv; v_head 0: one value for all heads
 * @v_row: row stride of v
 * @v_head: head stride of v
 * @o: output, as q, width dv
 * @o_row: row stride of o
 * @o_head: head stride of o
 * @lse: [b*t][heads] log-sum-exp of the scaled scores
 * @gamma: [b*t][heads] factor of each head's output, or NULL for 1
 * @scale: of the scores, 1/sqrt(width)
 * @ra_scale: reciprocal term: s_{t,u} += ra_scale <q_u, k_t> for 0 <= t-u <= ra_window;
 *	0 = off. RA-MLA: alpha_ra / sqrt(L).
 * @ra_window: its window
 *
 *     s_{h,t,u} = scale <q_{t,h}, k_u> (+ reciprocal term), u <= t
 *     o_{t,h} = gamma_{t,h} sum_u softmax_u(s_{h,t,u}) v_u
 *
 * Online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867; blocking: Dao et
 * al. 2022, arXiv 2205.14135.
 */
struct attn {
	int b, t, heads, dk, dv;
	const act_t *q;
	long q_row, q_head;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	act_t *o;
	long o_row, o_head;
	acc_t *lse;
	const act_t *gamma;
	double scale, ra_scale;
	int ra_window;
};

/** k_attn_fwd() - o and lse */
void k_attn_fwd(const struct attn *a);

/**
 * k_attn_bwd() - gradients of k_attn_fwd()
 * @a: as in forward, with its o and lse
 * @dq: strides of q
 * @dk: strides of k; shared keys sum over heads in a fixed order
 * @dv: strides of v; the same
 * @dgamma: [b*t][heads], written where a->gamma and @dgamma are not NULL
 * @d_o: gradient of o, its strides
 * @delta: [b*t][heads] scratch: <d_o, o>
 *
 * dq, dk and dv are overwritten (their rows' dk or dv elements per head only), so
 * they may be parts of one [b*t][3C] buffer.
 */
void k_attn_bwd(const struct attn *a, act_t *dq, act_t *dk, act_t *dv, act_t *dgamma,
		const act_t *d_o, acc_t *delta);

/**
 * struct attn_step - one query per sequence against its cache
 * @b: sequences
 * @heads: query heads
 * @dk: width of query and key
 * @dv: width of value and output
 * @pos: position of the query; keys 0..pos are in the cache
 * @q: [b][heads][dk]
 * @k: key u of sequence i at k + i * cache_stride + u * k_row + h * k_head
 * @k_row: row stride of k
 * @k_head: 0 for one key shared by the heads
 * @v: as k
 * @v_row: row stride of v
 * @v_head: head stride of v
 * @cache_stride: elements from sequence to sequence
 * @o: [b][heads][dv]
 * @gamma: [b][heads] or NULL
 * @scale: of the scores
 * @ra_scale: reciprocal term, 0 = off
 * @ra_window: its window W
 * @ring: query heads of position u of sequence i at
 *	ring + i * cache_stride + (u % (W + 1)) * heads * dk; holds pos itself too
 * @route: [b][heads][route_stride] gets gamma * P for u <= pos, or NULL
 * @route_stride: elements between its rows
 */
struct attn_step {
	int b, heads, dk, dv, pos;
	const act_t *q;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	long cache_stride;
	act_t *o;
	const act_t *gamma;
	double scale, ra_scale;
	int ra_window;
	const act_t *ring;
	act_t *route;
	long route_stride;
};

/** k_attn_step() - o (and route); the cache is read once */
void k_attn_step(const struct attn_step *a);

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

/* ---- route: sparse rows of the attention matrix -------------------------- */

enum route_mode { ROUTE_NONE, ROUTE_TOPK, ROUTE_RMS };

/**
 * struct route - sparsified attention rows R^, detached
 * @a: what is needed to recompute gamma * P: q, k, lse, gamma, scales and strides
 *	(v and o are not used)
 * @nr: row sets: 1 (heads averaged) or heads (each its own, no 1/H)
 * @mode: none, topk, rms
 * @topk: entries kept per row (topk)
 * @tau: rms: entries >= tau * rms of the visible entries are kept
 * @normalize: divide a row by max(its sum, 1e-8)
 * @index: [b*t][nr][topk] u inside the sequence, ascending; -1 past the last (topk)
 * @weight: [b*t][nr][topk] the kept and normalised entry
 * @thr: [b*t][nr] none, rms: smallest entry kept (none: 0)
 * @inv: [b*t][nr] none, rms: factor of kept entries (1 without @normalize)
 * @row: step: [b][nr][row_stride] the dense row R^ over u <= pos, else NULL
 * @row_stride: elements between rows
 *
 * The arrays belong to the writer's saved activations. Ties in topk: the smaller
 * u wins.
 */
struct route {
	struct attn a;
	int nr;
	enum route_mode mode;
	int topk;
	double tau;
	bool normalize;
	int32_t *index;
	act_t *weight;
	acc_t *thr, *inv;
	act_t *row;
	long row_stride;
};

/**
 * k_route_scratch() - elements of scratch that the route kernels want
 * @b: sequences
 * @t: positions
 * @nr: row sets
 * @topk: entries per row, 0 for the modes none and rms
 *
 * At most b * 128 * t * 2 plus lists of 4 b t nr topk for the transposed gather.
 * On the cpu only these lists: for each sequence and row set t + 1 int32, where the
 * entries of each u begin, then the entries, at most t * topk int32: t' * topk + slot,
 * sorted by u, ascending in t'. none and rms want nothing there.
 */
size_t k_route_scratch(int b, int t, int nr, int topk);

/**
 * k_route_build() - select: fills index and weight (topk) or thr and inv
 * @r: with everything but these arrays' contents set
 * @scratch: k_route_scratch() elements
 *
 * Recomputes scores tile by tile; neither arch holds a T x T buffer.
 */
void k_route_build(const struct route *r, act_t *scratch);

/**
 * k_route_gather_fwd() - y_t = alpha sum_u R^_{t,u} x_u + beta y_t
 * @r: built
 * @y: [b*t][width], row stride @ldy
 * @ldy: row stride of y
 * @x: [b*t][width], row stride @ldx
 * @ldx: row stride of x
 * @width: row set s routes columns [s width / nr, (s + 1) width / nr)
 * @alpha: factor
 * @beta: 0 overwrites
 * @scratch: k_route_scratch() elements
 */
void k_route_gather_fwd(const struct route *r, act_t *y, long ldy, const act_t *x, long ldx,
			int width, double alpha, double beta, act_t *scratch);

/**
 * k_route_gather_bwd() - dx_u = alpha sum_t R^_{t,u} dy_t + beta dx_u
 *
 * Deterministic: pairs stably sorted by u, summed in ascending t.
 */
void k_route_gather_bwd(const struct route *r, act_t *dx, long ldx, const act_t *dy, long ldy,
			int width, double alpha, double beta, act_t *scratch);

/**
 * k_route_step() - sparsify a decode row
 * @r: nr, mode, topk, tau, normalize, row, row_stride; row is written
 * @p: [b][heads][p_stride] gamma * P from k_attn_step()
 * @p_stride: elements between its rows
 * @b: sequences
 * @heads: heads of p; averaged where nr is 1
 * @pos: entries 0..pos are visible
 */
void k_route_step(const struct route *r, const act_t *p, long p_stride, int b, int heads, int pos);

/**
 * k_route_gather_step() - y_i = alpha sum_{u <= pos} row_{i,u} x_{i,u} + beta y_i
 * @r: nr, row, row_stride
 * @y: [b][width], row stride @ldy
 * @ldy: row stride of y
 * @x: x_{i,u} at x + i * x_seq + u * x_row
 * @x_seq: stride from sequence to sequence
 * @x_row: stride from position to position
 */
void k_route_gather_step(const struct route *r, act_t *y, long ldy, const act_t *x, long x_seq,
			 long x_row, int b, int width, int pos, double alpha, double beta);

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

/* ---- optim --------------------------------------------------------------- */

enum { OPTIM_WINDOW = 100 };	/* gradient norms the spike detector looks back at */
#define OPTIM_CHUNK 65536	/* elements of one partial sum of squares */

/**
 * struct optim_range - a run of elements with one decay
 * @offset: first element
 * @numel: elements
 * @decay: weight decay, 0 where none applies
 */
struct optim_range {
	size_t offset, numel;
	double decay;
};

/**
 * struct optim_hyper - what is constant over a run
 * @beta1, @beta2, @epsilon: Adam
 * @grad_clip: limit of the global norm, 0 = off
 * @inv_accum: 1 / GRADIENT_ACCUMULATION, applied to gradients when they are read
 * @theta: SPAM element clip, 0 = off
 * @clip_after: updates that the moments must have seen
 * @spike: SPAM z threshold, 0 = off
 * @interval: SPAM reset interval, 0 = off
 * @warmup: updates of the factor f after a reset, 0 = off
 */
struct optim_hyper {
	double beta1, beta2, epsilon, grad_clip, inv_accum;
	double theta, spike;
	int clip_after, interval, warmup;
};

/**
 * struct optim_state - the optimizer's own memory, on the device and in checkpoints
 * @norms: the last norms, a ring
 * @nr_norms: how many of them are set
 * @head: slot of the next one
 * @applied: updates applied since the start
 * @count: updates the moments have seen since start or reset (bias correction)
 * @resets: resets so far
 * @warm: next n of the warmup after a reset, 0 = none running
 * @skipped: updates skipped since the start
 * @skipped_row: of these, the last ones in a row
 * @spikes: updates whose norm was a spike
 * @norm: last global norm, after the element clip, before the norm clip
 * @z: last z-score
 * @loss: last mean loss
 * @skip: the running update is skipped
 * @spike_now: the running update is a spike
 * @reset_now: moments are zeroed after the running update
 * @gscale: factor of gradients in the running update
 * @lr: lr * f of the running update
 * @corr1, @corr2: 1 - beta^count of the running update
 */
struct optim_state {
	double norms[OPTIM_WINDOW];
	int64_t nr_norms, head;
	int64_t applied, count, resets, warm, skipped, skipped_row, spikes;
	double norm, z, loss;
	int64_t skip, spike_now, reset_now;
	double gscale, lr, corr1, corr2;
};

/**
 * k_spam_clip() - g = sign(g) sqrt(theta v^) where g^2 > theta v^ > 0
 * @g: [n] sums over the micro-batches: compared and written as g * inv_accum would be
 * @v: [n] second moments before this update
 *
 * v^ is bias-corrected with state->count. Nothing while count < clip_after.
 * Huang et al. 2025, arXiv 2501.06842.
 */
void k_spam_clip(grad_t *g, const grad_t *v, size_t n, const struct optim_hyper *hp,
		 const struct optim_state *st);

/**
 * k_grad_norm() - sums of squares of g * inv_accum, in double
 * @partial: [ceil(n / OPTIM_CHUNK)] one per chunk
 */
void k_grad_norm(double *partial, const grad_t *g, size_t n, const struct optim_hyper *hp);

/**
 * k_optim_decide() - norm, finiteness, spike, clip factor, warmup of the update
 * @st: read and written
 * @partial: from k_grad_norm()
 * @nr: its length
 * @loss: mean loss of the step, device; not finite skips the update
 * @lr: device scalar: the schedule's learning rate
 *
 * spec order: a skipped norm never enters the window; z against the previous norms
 * (population deviation; 0 with fewer than 10 or no deviation).
 */
void k_optim_decide(struct optim_state *st, const double *partial, size_t nr, const double *loss,
		    const double *lr, const struct optim_hyper *hp);

/**
 * k_adamw() - one update: spike damping, moments, weights, reset
 * @w: parameters as the kernels read them
 * @master: master weights; the same pointer as @w where param_t is grad_t
 * @g: summed gradients
 * @m: first moments
 * @v: second moments
 * @ranges: [nr] in device memory, covering every element once
 * @st: decided; skip leaves everything as it is
 *
 * w -= lr (m^ / (sqrt(v^) + epsilon) + decay w). Loshchilov and Hutter 2017,
 * arXiv 1711.05101.
 */
void k_adamw(param_t *w, grad_t *master, const grad_t *g, grad_t *m, grad_t *v,
	     const struct optim_range *ranges, int nr, const struct optim_hyper *hp,
	     const struct optim_state *st);

#endif
