// Atomics: compare-and-swap loops, every operation, half precision, locks, ordered atomics of the library, a grid barrier.
// target: sm_80
#include <cuda/atomic>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ double atomic_max_double(double *address, double value) {
    unsigned long long *bits = reinterpret_cast<unsigned long long *>(address), old = *bits, assumed;
    do {
        assumed = old;
        if (__longlong_as_double(assumed) >= value) break;
        old = atomicCAS(bits, assumed, __double_as_longlong(value));
    } while (old != assumed);
    return __longlong_as_double(old);
}

extern "C" __global__ void largest(double *out, const double *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomic_max_double(out, in[i]);
}

extern "C" __global__ void operations(unsigned *cells, unsigned long long *wide, float *sums, double *total, half2 *pair, __nv_bfloat16 *single,
                                      const unsigned *in) {
    __shared__ unsigned local[4];
    if (threadIdx.x < 4) local[threadIdx.x] = threadIdx.x == 2 ? 0xffffffffu : 0;
    __syncthreads();
    unsigned x = in[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(&local[0], x);
    atomicMax(&local[1], x);
    atomicMin(&local[2], x);
    atomicInc(&local[3], 9);
    atomicAnd(cells + 4, x | 0xff00ff00u);
    atomicOr(cells + 5, x & 0x0f0f0f0fu);
    atomicXor(cells + 6, x);
    atomicDec(cells + 7, 12);
    atomicSub(cells + 8, x);
    atomicMax(reinterpret_cast<int *>(cells + 9), static_cast<int>(x));
    atomicAdd(wide, (unsigned long long)x << 20);
    atomicMax(wide + 1, (unsigned long long)x * x);
    atomicXor(wide + 2, (unsigned long long)x << (x % 32));
    atomicAdd(sums + x % 3, 1.0f);
    atomicAdd_block(sums + 3 + blockIdx.x, 0.5f);
    atomicAdd(total, 0.25 * x);
    atomicAdd(pair, __floats2half2_rn(1.0f, 0.25f));
    atomicAdd(single, __float2bfloat16(1.0f));
    unsigned previous = atomicExch(cells + 10 + blockIdx.x * blockDim.x + threadIdx.x, x);
    atomicCAS(cells + 10 + blockIdx.x * blockDim.x + threadIdx.x, x, x + previous);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(cells, local[0]);
        atomicMax(cells + 1, local[1]);
        atomicMin(cells + 2, local[2]);
        atomicAdd(cells + 3, local[3]);
    }
}

extern "C" __global__ void locked(int *lock, int *value, int rounds) {
    // One lane of each warp takes the lock; the value is a plain variable.
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < rounds; i++) {
        while (atomicCAS(lock, 0, 1) != 0) __nanosleep(20);
        __threadfence();
        *(volatile int *)value = *(volatile int *)value * 3 + 1;
        __threadfence();
        atomicExch(lock, 0);
    }
}

extern "C" __global__ void chain(int *data, int *flag) {
    // Block i waits until block i - 1 has released its result.
    cuda::atomic_ref<int, cuda::thread_scope_device> turn(*flag);
    if (threadIdx.x == 0)
        while (turn.load(cuda::std::memory_order_acquire) != blockIdx.x) {}
    __syncthreads();
    int previous = blockIdx.x == 0 ? 1 : data[(blockIdx.x - 1) * blockDim.x + (threadIdx.x + 1) % blockDim.x];
    data[blockIdx.x * blockDim.x + threadIdx.x] = previous * 2 + threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) turn.fetch_add(1, cuda::std::memory_order_release);
}

extern "C" __global__ void grid_barrier(float *out, float *scratch, int *arrived, const float *in) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    scratch[i] = in[i] * in[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1);
        while (atomicAdd(arrived, 0) < gridDim.x) {}
        __threadfence();
    }
    __syncthreads();
    out[i] = __ldcg(scratch + (n - 1 - i)) + scratch[(i + blockDim.x) % n];
}
