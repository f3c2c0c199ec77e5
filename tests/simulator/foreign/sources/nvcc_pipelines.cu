// Copies that run ahead: stages of cuda::pipeline shared by all threads and by roles, and a matrix product with cp.async,
// ldmatrix and mma in inline PTX; a stencil that keeps planes in registers.
// target: sm_80
#include <cooperative_groups.h>
#include <cuda/pipeline>
#include <cuda_fp16.h>

extern "C" __global__ void staged(float *out, const float *in, int tiles) {
    constexpr int stages = 3;
    __shared__ alignas(16) float buffer[stages][128];
    auto pipe = cuda::make_pipeline();
    int t = threadIdx.x, ahead = 0;
    float sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
        for (; ahead < tiles && ahead < tile + stages; ahead++) {
            pipe.producer_acquire();
            cuda::memcpy_async(&buffer[ahead % stages][t * 4], in + ahead * 128 + t * 4, cuda::aligned_size_t<16>(16), pipe);
            pipe.producer_commit();
        }
        cuda::pipeline_consumer_wait_prior<stages - 1>(pipe);
        if (tile + stages > tiles) cuda::pipeline_consumer_wait_prior<0>(pipe);
        __syncthreads();
        for (int i = t; i < 128; i += 32) sum += buffer[tile % stages][127 - i] * (tile + 1);
        __syncthreads();
        pipe.consumer_release();
    }
    out[t] = sum;
}

extern "C" __global__ void roles(int *out, const int *in, int tiles) {
    // The first warp copies, the second computes.
    constexpr int stages = 2;
    __shared__ int buffer[stages][32];
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, stages> state;
    auto block = cooperative_groups::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state, threadIdx.x < 32 ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
    int t = threadIdx.x % 32, x = 0;
    for (int tile = 0; tile < tiles; tile++) {
        if (threadIdx.x < 32) {
            pipe.producer_acquire();
            cuda::memcpy_async(&buffer[tile % stages][t], in + tile * 32 + t, sizeof(int), pipe);
            pipe.producer_commit();
        } else {
            pipe.consumer_wait();
            x = x * 3 + buffer[tile % stages][t ^ 5];
            pipe.consumer_release();
        }
    }
    if (threadIdx.x >= 32) out[t] = x;
}

__device__ __forceinline__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

extern "C" __global__ void matmul(float *c, const __half *a, const __half *b, int m, int n, int k) {
    // 64 x 64 of c, four warps of 32 x 32, k in steps of 32 by two buffers; chunks of 16 bytes are swizzled.
    __shared__ alignas(128) __half left[2][64 * 32], right[2][32 * 64];
    int t = threadIdx.x, warp = t / 32, lane = t % 32, row = blockIdx.y * 64, column = blockIdx.x * 64;
    float acc[2][4][4] = {};
    auto load = [&](int stage, int depth) {
        for (int i = t; i < 256; i += 128) {
            int r = i / 4, chunk = i % 4;
            unsigned to = shared_address(&left[stage][r * 32 + (chunk ^ (r / 2 % 4)) * 8]);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(a + (row + r) * k + depth + chunk * 8));
            r = i / 8, chunk = i % 8;
            to = shared_address(&right[stage][r * 64 + (chunk ^ (r % 8)) * 8]);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(b + (depth + r) * n + column + chunk * 8));
        }
        asm volatile("cp.async.commit_group;");
    };
    load(0, 0);
    for (int step = 0; step < k / 32; step++) {
        if (step + 1 < k / 32) {
            load((step + 1) % 2, (step + 1) * 32);
            asm volatile("cp.async.wait_group 1;");
        } else
            asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        for (int depth = 0; depth < 32; depth += 16) {
            unsigned x[2][4], y[4][2];
            for (int i = 0; i < 2; i++) {
                int r = warp / 2 * 32 + i * 16 + lane % 16, chunk = depth / 8 + lane / 16;
                unsigned from = shared_address(&left[step % 2][r * 32 + (chunk ^ (r / 2 % 4)) * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(x[i][0]), "=r"(x[i][1]), "=r"(x[i][2]), "=r"(x[i][3]) : "r"(from));
            }
            for (int j = 0; j < 4; j += 2) {
                int r = depth + lane % 16, chunk = warp % 2 * 4 + j + lane / 16;
                unsigned from = shared_address(&right[step % 2][r * 64 + (chunk ^ (r % 8)) * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(y[j][0]), "=r"(y[j][1]), "=r"(y[j + 1][0]), "=r"(y[j + 1][1]) : "r"(from));
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++)
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                                 "{%0, %1, %2, %3};"
                                 : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                                 : "r"(x[i][0]), "r"(x[i][1]), "r"(x[i][2]), "r"(x[i][3]), "r"(y[j][0]), "r"(y[j][1]));
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int h = 0; h < 2; h++) {
                int r = row + warp / 2 * 32 + i * 16 + h * 8 + lane / 4, q = column + warp % 2 * 32 + j * 8 + lane % 4 * 2;
                *(float2 *)(c + r * n + q) = make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
            }
}

extern "C" __global__ void stencil(float *__restrict__ out, const float *__restrict__ in, int nx, int ny, int nz) {
    // Seven points; each thread walks along z with the planes before and behind in registers.
    __shared__ float plane[10][34];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y, size = nx * ny;
    int tx = threadIdx.x + 1, ty = threadIdx.y + 1;
    bool inside = x < nx && y < ny;
    auto at = [&](int i, int j, int z) { return i >= 0 && i < nx && j >= 0 && j < ny ? in[z * size + j * nx + i] : 0.0f; };
    float behind = 0, here = at(x, y, 0), ahead = nz > 1 ? at(x, y, 1) : 0;
    for (int z = 0; z < nz; z++) {
        plane[ty][tx] = here;
        if (threadIdx.x == 0) plane[ty][0] = at(x - 1, y, z);
        if (threadIdx.x == 31) plane[ty][33] = at(x + 1, y, z);
        if (threadIdx.y == 0) plane[0][tx] = at(x, y - 1, z);
        if (threadIdx.y == 7) plane[9][tx] = at(x, y + 1, z);
        __syncthreads();
        float sum = plane[ty][tx - 1] + plane[ty][tx + 1] + plane[ty - 1][tx] + plane[ty + 1][tx] + behind + ahead;
        if (inside) out[z * size + y * nx + x] = sum - 6 * here;
        __syncthreads();
        behind = here;
        here = ahead;
        ahead = z + 2 < nz ? at(x, y, z + 2) : 0;
    }
}
