// Bulk copies and tensor maps from inline assembly: mbarriers with transaction counts, multicast, reductions, stores.
// target: sm_90a
#include <cuda.h>

__device__ unsigned address(const void *p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ void init(unsigned long long *barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count) : "memory");
}

__device__ void expect(unsigned long long *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes) : "memory");
}

__device__ void wait(unsigned long long *barrier, unsigned parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@done bra END;\nbra AGAIN;\nEND:\n}" ::"r"(address(barrier)), "r"(parity)
        : "memory");
}

extern "C" __global__ void bulk_scale(float *out, const float *in, int chunks) {
    // Two stages of 256 floats: bulk load, scale in place, bulk store.
    __shared__ alignas(128) float buffer[2][256];
    __shared__ alignas(8) unsigned long long full[2];
    if (threadIdx.x == 0) {
        init(&full[0], 1);
        init(&full[1], 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    auto fetch = [&](int i) {
        expect(&full[i % 2], 1024);
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(buffer[i % 2])),
                     "l"(in + i * 256), "r"(1024), "r"(address(&full[i % 2]))
                     : "memory");
    };
    if (threadIdx.x == 0) fetch(0);
    for (int i = 0; i < chunks; i++) {
        if (threadIdx.x == 0 && i + 1 < chunks) {
            asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
            fetch(i + 1);
        }
        wait(&full[i % 2], i / 2 % 2);
        for (int j = threadIdx.x; j < 256; j += blockDim.x) buffer[i % 2][j] = buffer[i % 2][j] * 2.0f + i;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(out + i * 256), "r"(address(buffer[i % 2])), "r"(1024)
                         : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        }
    }
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

extern "C" __global__ void bulk_reduce(int *sums, const int *in) {
    __shared__ alignas(16) int part[64];
    part[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x] + 1;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32 [%0], [%1], %2;" ::"l"(sums), "r"(address(part)), "r"(256)
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
}

extern "C" __global__ void tensor_tile(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, int x, int y) {
    // Reads a 16 x 32 box of float16 at (x, y), which may lie partly outside, doubles it, writes it back elsewhere.
    __shared__ alignas(128) unsigned short tile[16 * 32];
    __shared__ alignas(8) unsigned long long full;
    if (threadIdx.x == 0) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(&from) : "memory");
        init(&full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect(&full, sizeof(tile));
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                         address(tile)),
                     "l"(&from), "r"(x), "r"(y), "r"(address(&full))
                     : "memory");
    }
    __syncthreads();
    wait(&full, 0);
    for (int i = threadIdx.x; i < 16 * 32; i += blockDim.x) {
        asm("{ .reg .b16 t; mov.b16 t, %0; add.f16 %0, t, t; }" : "+h"(tile[i]));
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to), "r"(0), "r"(8), "r"(address(tile))
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
    }
}

extern "C" __global__ void tensor_volume(const __grid_constant__ CUtensorMap map, float *out, int z) {
    __shared__ alignas(128) float box[2][4][8];
    __shared__ alignas(8) unsigned long long full;
    if (threadIdx.x == 0) {
        init(&full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect(&full, sizeof(box));
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(address(box)),
                     "l"(&map), "r"(-1), "r"(1), "r"(z), "r"(address(&full))
                     : "memory");
    }
    __syncthreads();
    wait(&full, 0);
    out[threadIdx.x] = (&box[0][0][0])[threadIdx.x];
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(int *out, const int *in) {
    // Each block of the cluster fetches one half and both receive it.
    __shared__ alignas(128) int both[2][64];
    __shared__ alignas(8) unsigned long long full;
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) {
        init(&full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect(&full, 512);
    }
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (threadIdx.x == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                         address(both[rank])),
                     "l"(in + (blockIdx.x / 2 * 2 + rank) * 64), "r"(256), "r"(address(&full)), "h"((unsigned short)3)
                     : "memory");
    wait(&full, 0);
    out[blockIdx.x * 64 + threadIdx.x] = both[0][threadIdx.x] * 1000 + both[1][63 - threadIdx.x];
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
