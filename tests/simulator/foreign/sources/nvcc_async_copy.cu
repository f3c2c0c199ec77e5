// Asynchronous copies through the library: pipelines, barriers, and groups that copy together.
// target: sm_80
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>

#pragma nv_diag_suppress static_var_with_dynamic_init

namespace cg = cooperative_groups;

extern "C" __global__ void pipelined_sum(float *out, const float *in, int batches) {
    __shared__ float stage[2][128];
    auto pipe = cuda::make_pipeline();
    auto fetch = [&](int i) {
        pipe.producer_acquire();
        cuda::memcpy_async(&stage[i % 2][threadIdx.x], in + (blockIdx.x * batches + i) * 128 + threadIdx.x, sizeof(float), pipe);
        pipe.producer_commit();
    };
    fetch(0);
    float total = 0.0f;
    for (int i = 0; i < batches; i++) {
        if (i + 1 < batches) {
            fetch(i + 1);
            cuda::pipeline_consumer_wait_prior<1>(pipe);
        } else {
            cuda::pipeline_consumer_wait_prior<0>(pipe);
        }
        __syncthreads();
        total += stage[i % 2][127 - threadIdx.x];
        __syncthreads();
        pipe.consumer_release();
    }
    out[blockIdx.x * 128 + threadIdx.x] = total;
}

extern "C" __global__ void barrier_copy(int *out, const int *in) {
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    __shared__ alignas(16) int tile[256];
    auto block = cg::this_thread_block();
    if (block.thread_rank() == 0) init(&barrier, block.size());
    block.sync();
    cuda::memcpy_async(block, tile, in + blockIdx.x * 256, cuda::aligned_size_t<16>(sizeof(tile)), barrier);
    barrier.arrive_and_wait();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) out[blockIdx.x * 256 + i] = tile[i ^ 1] + tile[255 - i];
}

extern "C" __global__ void group_copy(int *out, const int *in) {
    extern __shared__ int tile[];
    auto block = cg::this_thread_block();
    cg::memcpy_async(block, tile, in + blockIdx.x * 192, sizeof(int) * 192);
    cg::wait(block);
    int total = 0;
    for (int i = 0; i <= threadIdx.x; i++) total += tile[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

extern "C" __global__ void two_roles(float *out, const float *in, int rounds) {
    // The first warp produces, the second consumes; barriers full and empty hand a buffer to and fro.
    __shared__ cuda::barrier<cuda::thread_scope_block> full, empty;
    __shared__ float buffer[32];
    if (threadIdx.x == 0) {
        init(&full, 64);
        init(&empty, 64);
    }
    __syncthreads();
    int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int i = 0; i < rounds; i++) {
            empty.arrive_and_wait();
            buffer[lane] = in[i * 32 + lane] * 2.0f;
            (void)full.arrive();
        }
    } else {
        (void)empty.arrive();
        float total = 0.0f;
        for (int i = 0; i < rounds; i++) {
            full.arrive_and_wait();
            total += buffer[31 - lane];
            (void)empty.arrive();
        }
        out[lane] = total;
    }
}
