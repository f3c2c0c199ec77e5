// Cooperative groups: tiles, reductions and scans of them, groups of lanes that agree, groups that diverged, copies, clusters.
// target: sm_90
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

extern "C" __global__ void tile_sums(int *sums, int *scans, float *most, const int *in) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
    int i = blockIdx.x * blockDim.x + block.thread_rank(), x = in[i];
    sums[i] = cg::reduce(tile, x, cg::plus<int>());
    scans[i] = cg::exclusive_scan(tile, x);
    auto pair = cg::tiled_partition<2>(tile);
    most[i] = cg::reduce(pair, x * 0.5f, cg::greater<float>()) + tile.meta_group_rank();
}

extern "C" __global__ void labels(int *sums, int *ranks, const int *label, const int *in) {
    cg::coalesced_group active = cg::coalesced_threads();
    auto same = cg::labeled_partition(active, label[threadIdx.x]);
    sums[threadIdx.x] = cg::reduce(same, in[threadIdx.x], cg::plus<int>());
    ranks[threadIdx.x] = same.thread_rank() * 100 + same.num_threads();
    auto half = cg::binary_partition(active, in[threadIdx.x] % 2 == 0);
    ranks[threadIdx.x] += 10000 * cg::reduce(half, 1, cg::plus<int>());
}

extern "C" __global__ void diverged(int *out, int *count, const int *in) {
    int x = in[threadIdx.x];
    if (x % 3 == 0) {
        cg::coalesced_group group = cg::coalesced_threads();
        int base = 0;
        if (group.thread_rank() == 0) base = atomicAdd(count, group.num_threads());
        base = group.shfl(base, 0);
        out[base + group.thread_rank()] = x;
        int rest = group.thread_rank();
        if (rest % 2) {
            cg::coalesced_group odd = cg::coalesced_threads();
            if (odd.all(x >= 0) && odd.thread_rank() == 0) atomicAdd(count + 1, odd.num_threads());
        }
    }
}

extern "C" __global__ void copy_in(float *out, const float *in, int n) {
    extern __shared__ float tile[];
    cg::thread_block block = cg::this_thread_block();
    float sum = 0;
    for (int start = 0; start < n; start += 128) {
        int count = min(128, n - start);
        cg::memcpy_async(block, tile, in + start, sizeof(float) * count);
        cg::wait(block);
        for (int i = block.thread_rank(); i < count; i += block.num_threads()) sum += tile[count - 1 - i] * (start + i);
        block.sync();
    }
    auto warp = cg::tiled_partition<32>(block);
    sum = cg::reduce(warp, sum, cg::plus<float>());
    if (warp.thread_rank() == 0) atomicAdd(out, sum);
}

extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_scan(int *out, const int *in) {
    // Each block's sum is read by the blocks of higher rank from its shared memory.
    cg::cluster_group cluster = cg::this_cluster();
    cg::thread_block block = cg::this_thread_block();
    __shared__ int sums[2], total;
    auto warp = cg::tiled_partition<32>(block);
    int i = blockIdx.x * 64 + threadIdx.x, x = in[i];
    int scan = cg::inclusive_scan(warp, x);
    if (warp.thread_rank() == 31) sums[warp.meta_group_rank()] = scan;
    block.sync();
    if (threadIdx.x == 0) total = sums[0] + sums[1];
    if (warp.meta_group_rank()) scan += sums[0];
    cluster.sync();
    for (unsigned r = 0; r < cluster.block_rank(); r++) scan += *cluster.map_shared_rank(&total, r);
    out[i] = scan;
    cluster.sync();
}

extern "C" __global__ void wide_tiles(int *out, const int *in) {
    // Tiles of two warps meet through shared memory that the system reserves for them.
    auto tile = cg::tiled_partition<64>(cg::this_thread_block());
    int i = threadIdx.x, x = in[i];
    int sum = cg::reduce(tile, x, cg::plus<int>()) + tile.shfl(x, 40) * 3;
    tile.sync();
    out[i] = sum + (tile.any(x == 7) ? 1000000 : 0);
}
