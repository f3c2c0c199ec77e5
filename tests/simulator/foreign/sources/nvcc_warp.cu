// Warp-wide operations: votes, matches, reductions, shuffles with widths, divergence, groups made when the kernel runs.
// target: sm_80
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

extern "C" __global__ void votes(unsigned *out, const int *in) {
    int lane = threadIdx.x % 32, n = blockDim.x, i = threadIdx.x, x = in[i];
    const unsigned all = 0xffffffffu;
    out[0 * n + i] = __ballot_sync(all, x > 0);
    out[1 * n + i] = __any_sync(all, x > 90) + 2 * __all_sync(all, x > -100);
    out[2 * n + i] = __match_any_sync(all, x % 5);
    int same;
    out[3 * n + i] = __match_all_sync(all, x / 1000, &same) + same;
    out[4 * n + i] = __reduce_add_sync(all, x);
    out[5 * n + i] = __reduce_max_sync(all, x) ^ __reduce_min_sync(all, x);
    out[6 * n + i] = __reduce_and_sync(all, x | 1u) ^ __reduce_or_sync(all, x & 0xf0u) ^ __reduce_xor_sync(all, (unsigned)x);
    out[7 * n + i] = __shfl_sync(all, x, lane * 7 % 32);
    out[8 * n + i] = __shfl_up_sync(all, x, 3, 16);
    out[9 * n + i] = __shfl_down_sync(all, x, 5, 8);
    out[10 * n + i] = __shfl_xor_sync(all, x, 9, 16);
    unsigned y = 0;
    if (x > 0) {
        unsigned mask = __activemask();
        y = __popc(mask) + __shfl_sync(mask, x, __ffs(mask) - 1);
    } else {
        unsigned mask = __ballot_sync(__activemask(), x % 2 == 0);
        y = mask ^ 0x80000000u;
    }
    __syncwarp();
    out[11 * n + i] = y;
    out[12 * n + i] = __syncthreads_count(x > 0) * 4 + __syncthreads_and(x < 1000) * 2 + __syncthreads_or(x == 12345);
    long long wide = __shfl_xor_sync(all, (long long)x << 33, 1);
    out[13 * n + i] = wide >> 32;
}

extern "C" __global__ void compact(int *out, int *count, const int *in, int n) {
    // Keeps the positive values; each group of active threads does one atomic.
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && in[i] > 0) {
        cg::coalesced_group active = cg::coalesced_threads();
        int first;
        if (active.thread_rank() == 0) first = atomicAdd(count, active.size());
        out[active.shfl(first, 0) + active.thread_rank()] = in[i];
    }
}

extern "C" __global__ void tiles(float *out, const float *in) {
    auto block = cg::this_thread_block();
    auto eight = cg::tiled_partition<8>(block);
    auto warp = cg::tiled_partition<32>(block);
    float x = in[threadIdx.x];
    int n = block.size();
    out[threadIdx.x] = cg::reduce(eight, x, cg::plus<float>());
    out[n + threadIdx.x] = cg::inclusive_scan(warp, x, cg::plus<float>());
    auto halves = cg::binary_partition(warp, x > 0.0f);
    out[2 * n + threadIdx.x] = cg::reduce(halves, x, cg::greater<float>()) + halves.size();
    auto same = cg::labeled_partition(warp, static_cast<int>(threadIdx.x % 3));
    out[3 * n + threadIdx.x] = cg::exclusive_scan(same, 1, cg::plus<int>()) + 100 * same.meta_group_rank();
}

extern "C" __global__ void collatz(int *steps, int n) {
    // Threads of a warp leave the loop at very different times.
    int i = blockIdx.x * blockDim.x + threadIdx.x + 1;
    if (i > n) return;
    unsigned x = i;
    int count = 0;
    while (x != 1) {
        if (x % 2 == 0) {
            x /= 2;
        } else {
            x = 3 * x + 1;
            if (x % 4 == 0) {
                x /= 2;
                count++;
            }
        }
        count++;
    }
    steps[i - 1] = count;
}
