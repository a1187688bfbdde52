/* SPDX-License-Identifier: MIT */
/**
 * DOC: clusters of blocks (sm_90)
 *
 * The blocks of a grid that differ in x alone are a cluster, and reach into each other's
 * shared memory. Before sm_90 gridDim.x is 1 and a cluster is a block.
 */
#ifndef TENON_CUDA_CLUSTER_CUH
#define TENON_CUDA_CLUSTER_CUH

#include <cooperative_groups.h>

#include "common.cuh"

enum { CLUSTER_MAX = 8 };	/* blocks that every device can place */

/** launch_clusters() - as launch() */
template <class... P, class... A>
static inline void launch_clusters(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
				   A... args)
{
	cudaLaunchAttribute attrs[2] = {};
	cudaLaunchConfig_t config = {};

	attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attrs[0].val.programmaticStreamSerializationAllowed = 1;
	attrs[1].id = cudaLaunchAttributeClusterDimension;
	attrs[1].val.clusterDim.x = grid.x;
	attrs[1].val.clusterDim.y = attrs[1].val.clusterDim.z = 1;
	config.gridDim = grid;
	config.blockDim = block;
	config.dynamicSmemBytes = shared;
	config.stream = cuda_stream();
	config.attrs = attrs;
	config.numAttrs = cuda_capability() >= 90 ? ARRAY_SIZE(attrs) : 0;
	CUDA(cudaLaunchKernelEx(&config, kernel, (P)args...));
}

/** cluster_peer() - the place of @p in block @rank of the cluster */
template <class T> static __device__ __forceinline__ T *cluster_peer(T *p, int rank)
{
#if __CUDA_ARCH__ >= 900
	return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#else
	return p;
#endif
}

/** cluster_arrive() - this thread is here; cluster_wait() follows */
static __device__ __forceinline__ void cluster_arrive(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

/** cluster_wait() - until all threads of the cluster are, and what they wrote is seen */
static __device__ __forceinline__ void cluster_wait(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
	__syncthreads();
#endif
}

#endif
