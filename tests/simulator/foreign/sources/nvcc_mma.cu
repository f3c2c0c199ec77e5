// A tiled float16 product from ldmatrix and mma.sync in inline assembly, double buffered with cp.async intrinsics.
// target: sm_80
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

constexpr int M = 32, N = 32, K = 32, PITCH = K + 8;

extern "C" __global__ void mma_tiled(half *c, const half *a, const half *b, int n, int k) {
    __shared__ alignas(16) half left[2][M][PITCH], right[2][N][PITCH];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row0 = blockIdx.x * M, col0 = blockIdx.y * N;
    auto fetch = [&](int stage, int depth) {
        int d = threadIdx.x % 4 * 8;
        for (int r = threadIdx.x / 4; r < 32; r += 16) {
            __pipeline_memcpy_async(&left[stage][r][d], a + (row0 + r) * k + depth + d, 16);
            __pipeline_memcpy_async(&right[stage][r][d], b + (col0 + r) * k + depth + d, 16);
        }
        __pipeline_commit();
    };
    float acc[4][4] = {};
    fetch(0, 0);
    for (int depth = 0, stage = 0; depth < k; depth += K, stage ^= 1) {
        if (depth + K < k) {
            fetch(stage ^ 1, depth + K);
            __pipeline_wait_prior(1);
        } else {
            __pipeline_wait_prior(0);
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < K; step += 16) {
            unsigned x[4], y[4][2];
            unsigned at = __cvta_generic_to_shared(&left[stage][warp * 16 + lane % 16][step + lane / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at));
#pragma unroll
            for (int j = 0; j < 4; j++) {
                unsigned bt = __cvta_generic_to_shared(&right[stage][j * 8 + lane % 8][step + lane / 8 % 2 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(y[j][0]), "=r"(y[j][1]) : "r"(bt));
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                             "{%0, %1, %2, %3};"
                             : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
                             : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[j][0]), "r"(y[j][1]));
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < 4; j++) {
        int row = row0 + warp * 16 + lane / 4, col = col0 + j * 8 + lane % 4 * 2;
        *reinterpret_cast<half2 *>(c + row * n + col) = __floats2half2_rn(acc[j][0], acc[j][1]);
        *reinterpret_cast<half2 *>(c + (row + 8) * n + col) = __floats2half2_rn(acc[j][2], acc[j][3]);
    }
}

extern "C" __global__ void mma_sparse(float *c, const half *a, const unsigned *metadata, const half *b) {
    // a is 16 x 32 with two of each four values kept (16 x 16 stored); b is 32 x 8, stored by columns.
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const unsigned *x = reinterpret_cast<const unsigned *>(a), *y = reinterpret_cast<const unsigned *>(b);
    unsigned x0 = x[g * 8 + t], x1 = x[(g + 8) * 8 + t], x2 = x[g * 8 + t + 4], x3 = x[(g + 8) * 8 + t + 4];
    unsigned y0 = y[g * 16 + t], y1 = y[g * 16 + t + 4], y2 = y[g * 16 + t + 8], y3 = y[g * 16 + t + 12];
    float d[4] = {};
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
        "{%0, %1, %2, %3}, %12, 0x0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(y0), "r"(y1), "r"(y2), "r"(y3), "r"(metadata[lane]));
    c[g * 8 + t * 2] = d[0];
    c[g * 8 + t * 2 + 1] = d[1];
    c[(g + 8) * 8 + t * 2] = d[2];
    c[(g + 8) * 8 + t * 2 + 1] = d[3];
}
