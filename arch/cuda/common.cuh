/* SPDX-License-Identifier: MIT */
/**
 * DOC: what every file of the cuda backend shares
 *
 * act_t and param_t are real here, through real_of(): bf16 (CONFIG_REAL_BF16; outside arch/
 * two opaque bytes) or float. What runs on tensor cores is for bf16 alone, and says bf16.
 */
#ifndef TENON_CUDA_COMMON_CUH
#define TENON_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "types.h"
extern "C" {
#include "util.h"
}

typedef __nv_bfloat16 bf16;
#ifdef CONFIG_REAL_BF16
typedef bf16 real;
#define REAL_TYPE CUDA_R_16BF	/* as libraries call it */
#else
typedef float real;
#define REAL_TYPE CUDA_R_32F
#endif

static_assert(sizeof(act_t) == sizeof(real) && sizeof(acc_t) == sizeof(float),
	      "arch/cuda has bf16 and float");

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/** cuda_stream() - the stream of all kernels and copies, arch/cuda/device.cu */
extern "C" cudaStream_t cuda_stream(void);

/** CUDA() - a call of the runtime that must succeed */
#define CUDA(call) cuda_check((call), #call, __FILE__, __LINE__)

static inline void cuda_check(cudaError_t err, const char *call, const char *file, int line)
{
	if (err != cudaSuccess)
		die("%s:%d: %s: %s (%s)", file, line, call, cudaGetErrorString(err),
		    cudaGetErrorName(err));
}

/** CUDA_LAUNCHED() - the launch before it was accepted */
#define CUDA_LAUNCHED() CUDA(cudaGetLastError())

/** cuda_capability() - 10 * major + minor of the device in use */
static inline int cuda_capability(void)
{
	static int capability;
	int device, major, minor;

	if (capability)
		return capability;
	CUDA(cudaGetDevice(&device));
	CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
	CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
	return capability = 10 * major + minor;
}

/** cuda_multiprocessors() - of the device in use */
static inline int cuda_multiprocessors(void)
{
	static int n;
	int device;

	if (n)
		return n;
	CUDA(cudaGetDevice(&device));
	CUDA(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
	return n;
}

/** cuda_shared_max() - bytes of shared memory that a block can have */
static inline size_t cuda_shared_max(void)
{
	static int bytes;
	int device;

	if (bytes)
		return bytes;
	CUDA(cudaGetDevice(&device));
	CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
	return bytes;
}

/**
 * launch() - a kernel that may begin while the one before it ends
 *
 * It touches nothing that an earlier kernel writes before after_previous(), which every
 * thread calls. Before Hopper (or where the earlier kernel is of another kind) it begins
 * when that is done.
 */
template <class... P, class... A>
static inline void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args)
{
	cudaLaunchAttribute early = {};
	cudaLaunchConfig_t config = {};

	early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	early.val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = grid;
	config.blockDim = block;
	config.dynamicSmemBytes = shared;
	config.stream = cuda_stream();
	config.attrs = &early;
	config.numAttrs = cuda_capability() >= 90;
	CUDA(cudaLaunchKernelEx(&config, kernel, (P)args...));
}

/**
 * shared_room() - let @kernel have @bytes of dynamic shared memory
 *
 * A multiprocessor gives as much of its cache as it can, or it would hold one block where
 * two fit.
 */
template <class K> static inline void shared_room(K *kernel, size_t bytes)
{
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
				  cudaSharedmemCarveoutMaxShared));
}

/** after_previous() - until the kernel before this one is done and its writes are seen */
static __device__ __forceinline__ void after_previous(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/** let_next() - the kernel behind this one may begin, as far as there is room */
static __device__ __forceinline__ void let_next(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static inline __host__ __device__ real *real_of(act_t *p)
{
	return (real *)p;
}

static inline __host__ __device__ const real *real_of(const act_t *p)
{
	return (const real *)p;
}

#ifdef CONFIG_REAL_BF16
#define bf16_of real_of	/* where there are tensor cores */
#endif

/** get() - an element as float */
static __device__ __forceinline__ float get(const bf16 *p)
{
	return __bfloat162float(*p);
}

static __device__ __forceinline__ float get(const float *p)
{
	return *p;
}

/** put() - *p = x, rounded to nearest even where it is bf16 */
static __device__ __forceinline__ void put(bf16 *p, float x)
{
	*p = __float2bfloat16(x);
}

static __device__ __forceinline__ void put(float *p, float x)
{
	*p = x;
}

/** rounded() - @x as memory would hold it */
static __device__ __forceinline__ float rounded(float x)
{
	real r;

	put(&r, x);
	return get(&r);
}

static inline __host__ __device__ int div_up(int a, int b)
{
	return (a + b - 1) / b;
}

/** pack_bf16() - two floats rounded to nearest even, @lo in the low half */
static inline __device__ uint32_t pack_bf16(float lo, float hi)
{
	__nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);

	return *(uint32_t *)&v;
}

/** exp2_fast() - 2^x, relative error 2^-22, 0 for minus infinity */
static inline __device__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* c[16][8] += a[16][16] b[16][8] by a warp, laid out as PTX has mma.m16n8k16 */
static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
					   uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Sixteen bytes to shared memory, asynchronously; 0 where not @inside. */
static __device__ __forceinline__ void copy16(void *dst, const void *src, bool inside = true)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
		     :: "r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(src),
		     "r"(inside ? 16 : 0) : "memory");
}

/* Copies by cp.async: this thread's since the last commit are a group. */
static __device__ __forceinline__ void copy_commit(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most @N of the newest groups are under way. */
template <int N> static __device__ __forceinline__ void copy_wait(void)
{
	asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

#endif
