// SPDX-License-Identifier: MIT
/*
 * Matrix products through cuBLASLt, which is column-major: c = op(a) op(b) by rows is
 * c^T = op(b)^T op(a)^T by columns, so b is its first operand and a its second, and the
 * bias runs down its rows.
 *
 * The algorithm is the first that the library proposes for a shape, an epilogue and the
 * alignment of the pointers, at a workspace of fixed size: nothing is timed, so one GPU
 * and one library give the same bits each time. Sums over a split inner dimension are
 * added in the workspace in one order (reduction scheme COMPUTE_TYPE) or not split.
 *
 * Where the library has no algorithm with the epilogue (odd strides), the product and
 * the epilogue are two passes.
 */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.cuh"
#include "rows.cuh"

enum {
	LT_BYTES = 32 << 20,	/* workspace of the library */
	ALIGN_MAX = 256,	/* the library asks for no more */
	PLANS_MAX = 4096,	/* different products of one binary */
};

/* Everything the choice depends on. Compared as bytes: zeroed first. */
struct gemm_key {
	int m, n, k, batch, wide, ta, tb, ep, bias, beta, db;
	long lda, ldb, ldc, sa, sb, sc, ldaux;
	int align[5];		/* a, b, c, bias or its gradient, aux */
};

/* A product as the library takes it. */
struct gemm_plan {
	struct gemm_key key;
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t a, b, c;
	cublasLtMatmulAlgo_t algo;
	bool found;		/* else there is no algorithm with this epilogue */
};

static cublasLtHandle_t handle;
static struct gemm_plan *plans[PLANS_MAX];
static int nr_plans;
static char *workspace;

/* LT() - a call of the library that must succeed */
#define LT(call) lt_check((call), #call, __LINE__)

static void lt_check(cublasStatus_t status, const char *call, int line)
{
	if (status != CUBLAS_STATUS_SUCCESS)
		die("%s:%d: %s: %s", __FILE__, line, call, cublasLtGetStatusString(status));
}

/* ---- workspace ----------------------------------------------------------------- */

size_t k_workspace(void)
{
	return LT_BYTES + PART_BYTES;
}

void k_workspace_use(void *mem)
{
	workspace = (char *)mem;
}

void *workspace_part(size_t bytes)
{
	if (bytes > PART_BYTES)
		die("sums of %zu bytes do not fit the workspace of %d; lower CONFIG_N_EMBD or "
		    "CONFIG_INTERMEDIATE_SIZE", bytes, PART_BYTES);
	return workspace + LT_BYTES;
}

/* ---- plans --------------------------------------------------------------------- */

static int alignment(const void *p)
{
	int align = ALIGN_MAX;

	while (align > 1 && (uintptr_t)p % align)
		align /= 2;
	return align;
}

/* The library refuses a pointer that belongs to another epilogue. */
static struct gemm_key key_of(const struct gemm *g, bool wide)
{
	bool bias = g->ep == GEMM_BIAS || g->ep == GEMM_BIAS_GELU;
	bool aux = g->ep == GEMM_BIAS_GELU || g->ep == GEMM_DGELU;
	struct gemm_key key;

	memset(&key, 0, sizeof(key));
	key.m = g->m;
	key.n = g->n;
	key.k = g->k;
	key.batch = MAX(g->batch, 1);
	key.wide = wide;
	key.ta = g->ta;
	key.tb = g->tb;
	key.ep = g->ep;
	key.bias = bias && g->bias;
	key.beta = g->beta != 0;
	key.db = g->db != NULL;
	key.lda = g->lda;
	key.ldb = g->ldb;
	key.ldc = g->ldc;
	if (key.batch > 1) {
		key.sa = g->sa;
		key.sb = g->sb;
		key.sc = g->sc;
	}
	key.ldaux = aux && g->aux ? g->ldaux : 0;
	key.align[0] = alignment(g->a);
	key.align[1] = alignment(g->b);
	key.align[2] = alignment(g->c);
	key.align[3] = alignment(g->db ? (const void *)g->db : g->bias);
	key.align[4] = alignment(g->aux);
	return key;
}

static cublasLtMatrixLayout_t layout(cudaDataType type, int rows, int cols, long ld,
				     const struct gemm_key *key, long stride)
{
	cublasLtMatrixLayout_t l;
	int32_t batch = key->batch;
	int64_t step = stride;

	LT(cublasLtMatrixLayoutCreate(&l, type, rows, cols, ld));
	LT(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
					    sizeof(batch)));
	LT(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
					    sizeof(step)));
	return l;
}

static void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, const void *value,
		size_t bytes)
{
	LT(cublasLtMatmulDescSetAttribute(desc, what, value, bytes));
}

static void plan_epilogue(struct gemm_plan *p)
{
	static const cublasLtEpilogue_t with_bias[] = {
		CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS,
		CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
	}, without[] = {
		CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_DEFAULT,
		CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_DGELU,
	};
	const struct gemm_key *key = &p->key;
	cublasLtEpilogue_t ep = (key->bias ? with_bias : without)[key->ep];
	cudaDataType type = REAL_TYPE;
	int64_t ld = key->ldaux;

	if (key->db)
		ep = CUBLASLT_EPILOGUE_BGRADB;
	set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &ep, sizeof(ep));
	if (key->bias)
		set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof(type));
	if (key->ldaux) {
		set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &type, sizeof(type));
		set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof(ld));
	}
}

/* The pointers of one call. */
static void plan_point(const struct gemm_plan *p, const struct gemm *g)
{
	if (p->key.bias)
		set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof(g->bias));
	if (p->key.db)
		set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->db, sizeof(g->db));
	if (p->key.ldaux)
		set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &g->aux, sizeof(g->aux));
}

static void plan_choose(struct gemm_plan *p)
{
	static const cublasLtMatmulPreferenceAttributes_t least[] = {
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
	};
	static const int of[] = { 0, 1, 2, 2 };
	uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	size_t bytes = LT_BYTES;
	cublasLtMatmulHeuristicResult_t result;
	cublasLtMatmulPreference_t pref;
	int n = 0;

	LT(cublasLtMatmulPreferenceCreate(&pref));
	LT(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
						&bytes, sizeof(bytes)));
	LT(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
						&schemes, sizeof(schemes)));
	for (int i = 0; i < 4; i++) {
		uint32_t align = p->key.align[of[i]];

		LT(cublasLtMatmulPreferenceSetAttribute(pref, least[i], &align, sizeof(align)));
	}
	p->found = cublasLtMatmulAlgoGetHeuristic(handle, p->desc, p->a, p->b, p->c, p->c, pref, 1,
						  &result, &n) == CUBLAS_STATUS_SUCCESS && n;
	p->algo = result.algo;
	LT(cublasLtMatmulPreferenceDestroy(pref));
}

static struct gemm_plan *plan_make(const struct gemm *g, const struct gemm_key *key)
{
	struct gemm_plan *p = (struct gemm_plan *)calloc(1, sizeof(*p));
	cublasOperation_t opa = key->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
	cublasOperation_t opb = key->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
	cudaDataType out = key->wide ? CUDA_R_32F : REAL_TYPE;

	if (!p)
		die("no memory for the plan of a product");
	if (!handle)
		LT(cublasLtCreate(&handle));
	p->key = *key;
	LT(cublasLtMatmulDescCreate(&p->desc, IS_ENABLED(CONFIG_REAL_TF32) ?
				    CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
	set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &opa, sizeof(opa));
	set(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &opb, sizeof(opb));
	plan_epilogue(p);
	plan_point(p, g);
	p->a = key->tb ? layout(REAL_TYPE, key->k, key->n, key->ldb, key, key->sb) :
			 layout(REAL_TYPE, key->n, key->k, key->ldb, key, key->sb);
	p->b = key->ta ? layout(REAL_TYPE, key->m, key->k, key->lda, key, key->sa) :
			 layout(REAL_TYPE, key->k, key->m, key->lda, key, key->sa);
	p->c = layout(out, key->n, key->m, key->ldc, key, key->sc);
	plan_choose(p);
	return p;
}

static struct gemm_plan *plan_of(const struct gemm *g, bool wide)
{
	struct gemm_key key = key_of(g, wide);

	for (int i = 0; i < nr_plans; i++) {
		if (!memcmp(&plans[i]->key, &key, sizeof(key))) {
			plan_point(plans[i], g);
			return plans[i];
		}
	}
	if (nr_plans == PLANS_MAX)
		die("more than %d different matrix products", PLANS_MAX);
	return plans[nr_plans++] = plan_make(g, &key);
}

/* ---- products ------------------------------------------------------------------ */

/* Of float products the library may refuse what it has proposed: then there is none. */
static void run(struct gemm_plan *p, const struct gemm *g)
{
	float alpha = g->alpha, beta = g->beta;
	cublasStatus_t status = cublasLtMatmul(handle, p->desc, &alpha, g->b, p->a, g->a, p->b,
					       &beta, g->c, p->c, g->c, p->c, &p->algo, workspace,
					       LT_BYTES, cuda_stream());

	if (!IS_ENABLED(CONFIG_REAL_BF16) && status == CUBLAS_STATUS_INVALID_VALUE)
		p->found = false;
	else
		lt_check(status, "cublasLtMatmul", __LINE__);
}

/* Returns false, and has started nothing, where there is no algorithm with the epilogue. */
static bool product(const struct gemm *g, bool wide)
{
	struct gemm_plan *p = plan_of(g, wide);

	if (p->found)
		run(p, g);
	return p->found;
}

/* Without its epilogue. */
static void product_alone(const struct gemm *g, bool wide)
{
	struct gemm plain = *g;

	plain.ep = GEMM_PLAIN;
	plain.bias = NULL;
	plain.aux = NULL;
	plain.db = NULL;
	if (product(&plain, wide))
		return;
	if (IS_ENABLED(CONFIG_REAL_BF16))
		die("cuBLASLt has no algorithm for a product of %d x %d x %d (strides %ld, %ld, "
		    "%ld)", g->m, g->n, g->k, g->lda, g->ldb, g->ldc);
	gemm_loops(&plain, wide);
}

/* The library's GELU is one of bf16's precision, whatever the type is. */
static bool own_epilogue(const struct gemm *g)
{
	return !IS_ENABLED(CONFIG_REAL_BF16) && (g->ep == GEMM_BIAS_GELU || g->ep == GEMM_DGELU);
}

void k_gemm(const struct gemm *g)
{
	if (!g->m || !g->n || gemm_thin(g, false) || (!own_epilogue(g) && product(g, false)))
		return;
	product_alone(g, false);
	gemm_epilogue(g);
}

void k_gemm_acc(const struct gemm *g)
{
	if (g->m && g->n && !gemm_thin(g, true))
		product_alone(g, true);
}

/* What row i of a [k][m] adds to the bias's gradient. */
template <int W> struct bias_row {
	const real *a;
	long lda;

	__device__ __forceinline__ void operator()(float (&v)[1][W], int i, int j) const
	{
		row_load<W>(v[0], a + i * lda + j);
	}
};

/* In a pass of its own where the library does not make it beside the product. */
static void bias_gradient(const struct gemm *g)
{
	const real *a = (const real *)g->a;
	struct sum_to<1> to = { { g->db } };

	if (row_wide(a, g->lda) && g->m % WIDE == 0)
		sum_columns<1, WIDE>(to, bias_row<WIDE>{ a, g->lda }, g->k, g->m);
	else
		sum_columns<1, 1>(to, bias_row<1>{ a, g->lda }, g->k, g->m);
}

void k_gemm_grad(const struct gemm *g)
{
	if (!g->m || !g->n || product(g, true))
		return;
	product_alone(g, true);
	if (g->db)
		bias_gradient(g);
}
