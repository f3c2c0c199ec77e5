// Block primitives of the CUB library: radix sort, scan, reduction, and a decoupled look-back of our own between blocks.
// target: sm_80
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>

extern "C" __global__ void radix_sort(unsigned *keys, int *values) {
    using Sort = cub::BlockRadixSort<unsigned, 64, 2, int>;
    __shared__ typename Sort::TempStorage storage;
    unsigned key[2];
    int value[2];
    int first = blockIdx.x * 128 + threadIdx.x * 2;
    for (int i = 0; i < 2; i++) {
        key[i] = keys[first + i];
        value[i] = values[first + i];
    }
    Sort(storage).Sort(key, value, 0, 16);
    for (int i = 0; i < 2; i++) {
        keys[first + i] = key[i];
        values[first + i] = value[i];
    }
}

extern "C" __global__ void prefix(int *out, int *carry, int *ready, const int *in) {
    using Scan = cub::BlockScan<int, 64>;
    using Load = cub::BlockLoad<int, 64, 4, cub::BLOCK_LOAD_TRANSPOSE>;
    using Store = cub::BlockStore<int, 64, 4, cub::BLOCK_STORE_WARP_TRANSPOSE>;
    __shared__ union {
        typename Scan::TempStorage scan;
        typename Load::TempStorage load;
        typename Store::TempStorage store;
    } storage;
    __shared__ int before;
    int x[4], total;
    Load(storage.load).Load(in + blockIdx.x * 256, x);
    __syncthreads();
    Scan(storage.scan).InclusiveSum(x, x, total);
    if (threadIdx.x == 0) {
        int sum = 0;
        if (blockIdx.x > 0) {
            while (*(volatile int *)(ready + blockIdx.x - 1) == 0) {}
            __threadfence();
            sum = *(volatile int *)(carry + blockIdx.x - 1);
        }
        before = sum;
        *(volatile int *)(carry + blockIdx.x) = sum + total;
        __threadfence();
        *(volatile int *)(ready + blockIdx.x) = 1;
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) x[i] += before;
    Store(storage.store).Store(out + blockIdx.x * 256, x);
}

extern "C" __global__ void extent(float *out, const float *in, int n) {
    using Reduce = cub::BlockReduce<float, 96>;
    __shared__ typename Reduce::TempStorage storage;
    float low = 1e30f, high = -1e30f;
    for (int i = threadIdx.x; i < n; i += 96) {
        low = fminf(low, in[i]);
        high = fmaxf(high, in[i]);
    }
    low = Reduce(storage).Reduce(low, [](float a, float b) { return fminf(a, b); });
    __syncthreads();
    high = Reduce(storage).Reduce(high, [](float a, float b) { return fmaxf(a, b); });
    if (threadIdx.x == 0) {
        out[0] = low;
        out[1] = high;
    }
}
