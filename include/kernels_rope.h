/* SPDX-License-Identifier: MIT */
/**
 * DOC: rotary positions, and what heads share
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_ROPE_H
#define TENON_KERNELS_ROPE_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct rope - rotations of pairs of elements by the position of their row
 * @n: rows
 * @t: row i has position i % t, where @pos is NULL
 * @pos: [n] device: positions of the rows, or NULL
 * @width: elements that rotate, even
 * @theta: base of the angles
 * @back: rotate by the negative angle: the gradient, which is the inverse
 *
 * With a = t theta^(-2i/width), i < width/2:
 *
 *     x_i, x_(i+width/2) = x_i cos a - x_(i+width/2) sin a,
 *                          x_(i+width/2) cos a + x_i sin a
 *
 * Angles, cosines and sines are in double. Su et al. 2021, arXiv 2104.09864; halves
 * are paired as in LLaMA, Touvron et al. 2023, arXiv 2302.13971.
 */
struct rope {
	int n, t;
	const int32_t *pos;
	int width;
	double theta;
	bool back;
};

/**
 * struct rope_heads - vectors of each row that rotate in place
 * @x: head h of row i at x + i * row + h * head
 * @row: row stride
 * @head: head stride
 * @heads: their number
 */
struct rope_heads {
	act_t *x;
	long row, head;
	int heads;
};

/** k_rope() - rotate; @x: [nr], angles are made once for all of them */
void k_rope(const struct rope *r, const struct rope_heads *x, int nr);

/**
 * k_heads_spread() - dst[i][h] = src[i]: what all heads share, to each of them
 * @dst: head h of row i at dst + i * row + h * head
 * @src: [n][width], row stride @ld
 */
void k_heads_spread(act_t *dst, long row, long head, const act_t *src, long ld, int n, int heads,
		    int width);

/** k_heads_sum() - dst[i] = sum over h of src[i][h], its gradient, rounded once; strides swapped */
void k_heads_sum(act_t *dst, long ld, const act_t *src, long row, long head, int n, int heads,
		 int width);

/**
 * k_gemm_past() - a product over the rows of the positions 0..pos[i] of each sequence
 * @g: with batch sequences of m rows each; rows behind pos[i] may be computed or not
 * @pos: [batch] device, below m
 */
void k_gemm_past(const struct gemm *g, const int32_t *pos);

#ifdef __cplusplus
}
#endif

#endif
