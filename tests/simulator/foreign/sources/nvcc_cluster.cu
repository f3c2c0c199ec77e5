// Thread-block clusters: distributed shared memory reached through cooperative groups, and remote barrier arrival.
// target: sm_90
#include <cooperative_groups.h>
#include <cuda/barrier>

namespace cg = cooperative_groups;

extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_histogram(int *counts, const int *in, int per_block, int bins_per_block) {
    extern __shared__ int bins[];
    cg::cluster_group cluster = cg::this_cluster();
    for (int i = threadIdx.x; i < bins_per_block; i += blockDim.x) bins[i] = 0;
    cluster.sync();
    for (int i = threadIdx.x; i < per_block; i += blockDim.x) {
        int bin = in[blockIdx.x * per_block + i];
        int *remote = cluster.map_shared_rank(bins, bin / bins_per_block);
        atomicAdd(remote + bin % bins_per_block, 1);
    }
    cluster.sync();
    int *mine = counts + cluster.block_rank() * bins_per_block;
    for (int i = threadIdx.x; i < bins_per_block; i += blockDim.x) atomicAdd(mine + i, bins[i]);
}

extern "C" __global__ void cluster_rotate(float *out, const float *in) {
    __shared__ float tile[64];
    cg::cluster_group cluster = cg::this_cluster();
    unsigned rank = cluster.block_rank(), size = cluster.num_blocks();
    tile[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
    cluster.sync();
    const float *next = cluster.map_shared_rank(tile, (rank + 1) % size);
    float x = next[63 - threadIdx.x];
    cluster.barrier_arrive();
    out[blockIdx.x * 64 + threadIdx.x] = x + size;
    cluster.barrier_wait();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_mailbox(int *out, const int *in) {
    __shared__ alignas(8) unsigned long long barrier;
    __shared__ int mail[64];
    unsigned mine = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
    unsigned box = static_cast<unsigned>(__cvta_generic_to_shared(mail + threadIdx.x));
    cg::cluster_group cluster = cg::this_cluster();
    unsigned peer = cluster.block_rank() ^ 1, remote_barrier, remote_box;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(mine) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 256;" ::"r"(mine) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster.sync();
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_barrier) : "r"(mine), "r"(peer));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_box) : "r"(box), "r"(peer));
    int x = in[blockIdx.x * 64 + threadIdx.x] * 2;
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(remote_box), "r"(x), "r"(remote_barrier)
                 : "memory");
    asm volatile(
        "{ .reg .pred done;\n"
        "WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra WAIT; }" ::"r"(mine)
        : "memory");
    out[blockIdx.x * 64 + threadIdx.x] = mail[threadIdx.x];
    cluster.sync();
}
