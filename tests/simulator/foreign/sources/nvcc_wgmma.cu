// Warp-group products with shared memory filled by hand: no swizzle, and A from registers.
// target: sm_90a
#include <cuda_fp16.h>

__device__ unsigned long long descriptor(const void *p, unsigned leading, unsigned stride) {
    unsigned long long at = static_cast<unsigned>(__cvta_generic_to_shared(p));
    return (at >> 4 & 0x3fff) | (unsigned long long)(leading >> 4) << 16 | (unsigned long long)(stride >> 4) << 32;
}

#define ACCUMULATORS "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define OPERANDS(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])

__device__ void store(float *c, const float *d) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) c[(warp * 16 + lane / 4 + i / 2 * 8) * 16 + j * 8 + lane % 4 * 2 + i % 2] = d[j * 4 + i];
}

// Core matrices of 8 rows of 16 bytes, the two along k next to one another.
__device__ int core(int row, int k) { return row / 8 * 128 + k / 8 * 64 + row % 8 * 8 + k % 8; }

extern "C" __global__ void wgmma_shared(float *c, const half *a, const half *b, int k) {
    __shared__ alignas(128) half left[64 * 16], right[16 * 16];
    float d[8] = {};
    for (int i = 0; i < 8; i++) asm volatile("" : "+f"(d[i])::"memory");
    for (int depth = 0; depth < k; depth += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 128) left[core(i / 16, i % 16)] = a[i / 16 * k + depth + i % 16];
        for (int i = threadIdx.x; i < 16 * 16; i += 128) right[core(i / 16, i % 16)] = b[i / 16 * k + depth + i % 16];
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 " ACCUMULATORS
                     ", %8, %9, p, 1, 1, 0, 0; }"
                     : OPERANDS(d)
                     : "l"(descriptor(left, 128, 256)), "l"(descriptor(right, 128, 256)), "r"(depth));
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
        __syncthreads();
    }
    store(c, d);
}

extern "C" __global__ void wgmma_registers(float *c, const half *a, const half *b) {
    // c = -(a b): A in registers, B negated, B stored with its rows along n (transposed by the instruction).
    // With its rows along n the leading offset is that along k and the stride that along n (PTX ISA, strides of matrices).
    __shared__ alignas(128) half right[16 * 16];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < 16 * 16; i += 128) right[core(i % 16, i / 16)] = b[i % 16 * 16 + i / 16];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    unsigned x[4];
    for (int i = 0; i < 4; i++)
        x[i] = *reinterpret_cast<const unsigned *>(a + (warp * 16 + lane / 4 + i % 2 * 8) * 16 + i / 2 * 8 + lane % 4 * 2);
    float d[8];
    for (int i = 0; i < 8; i++) {
        d[i] = 1.0f;
        asm volatile("" : "+f"(d[i])::"memory");  // the value is in its register before the fence
    }
    for (int i = 0; i < 4; i++) asm volatile("" : "+r"(x[i])::"memory");
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 1, 1; wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 " ACCUMULATORS
                 ", {%8, %9, %10, %11}, %12, p, 1, -1, 1; }"
                 : OPERANDS(d)
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(descriptor(right, 256, 128)));
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
    store(c, d);
}
