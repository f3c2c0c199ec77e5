// Tensor cores through the wmma interface, every type that sm_80 has.
// target: sm_80
#include <cuda_bf16.h>
#include <mma.h>

using namespace nvcuda;

extern "C" __global__ void wmma_f16(float *c, const half *a, const half *b, int n, int k) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::fill_fragment(acc, 0.0f);
    for (int i = 0; i < k; i += 16) {
        wmma::load_matrix_sync(x, a + blockIdx.x * 16 * k + i, k);
        wmma::load_matrix_sync(y, b + i * n + blockIdx.y * 16, n);
        wmma::mma_sync(acc, x, y, acc);
    }
    for (int i = 0; i < acc.num_elements; i++) acc.x[i] *= 0.5f;
    wmma::store_matrix_sync(c + blockIdx.x * 16 * n + blockIdx.y * 16, acc, n, wmma::mem_row_major);
}

extern "C" __global__ void wmma_f16_shared(half *c, const half *a, const half *b, int k) {
    __shared__ alignas(32) half left[32 * 24], right[8 * 24], result[32 * 8];
    wmma::fragment<wmma::matrix_a, 32, 8, 16, half, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 32, 8, 16, half, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 32, 8, 16, half> acc;
    wmma::fill_fragment(acc, __float2half(0.0f));
    for (int i = 0; i < k; i += 16) {
        for (int j = threadIdx.x; j < 32 * 16; j += 32) left[j / 16 * 24 + j % 16] = a[j / 16 * k + i + j % 16];
        for (int j = threadIdx.x; j < 8 * 16; j += 32) right[j / 16 * 24 + j % 16] = b[j / 16 * k + i + j % 16];
        __syncwarp();
        wmma::load_matrix_sync(x, left, 24);
        wmma::load_matrix_sync(y, right, 24);
        wmma::mma_sync(acc, x, y, acc);
        __syncwarp();
    }
    wmma::store_matrix_sync(result, acc, 8, wmma::mem_row_major);
    __syncwarp();
    for (int j = threadIdx.x; j < 32 * 8; j += 32) c[j] = result[j];
}

extern "C" __global__ void wmma_bf16(float *c, const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
    wmma::fragment<wmma::matrix_a, 8, 32, 16, __nv_bfloat16, wmma::col_major> x;
    wmma::fragment<wmma::matrix_b, 8, 32, 16, __nv_bfloat16, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 8, 32, 16, float> acc;
    wmma::fill_fragment(acc, 1.0f);
    wmma::load_matrix_sync(x, a, 8);
    wmma::load_matrix_sync(y, b, 32);
    wmma::mma_sync(acc, x, y, acc);
    wmma::store_matrix_sync(c, acc, 8, wmma::mem_col_major);
}

extern "C" __global__ void wmma_tf32(float *c, const float *a, const float *b) {
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> acc;
    wmma::load_matrix_sync(acc, c, 16, wmma::mem_row_major);
    wmma::load_matrix_sync(x, a, 8);
    wmma::load_matrix_sync(y, b, 8);
    for (int i = 0; i < x.num_elements; i++) x.x[i] = wmma::__float_to_tf32(x.x[i]);
    for (int i = 0; i < y.num_elements; i++) y.x[i] = wmma::__float_to_tf32(y.x[i]);
    wmma::mma_sync(acc, x, y, acc);
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_row_major);
}

extern "C" __global__ void wmma_double(double *c, const double *a, const double *b) {
    wmma::fragment<wmma::matrix_a, 8, 8, 4, double, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 8, 8, 4, double, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 8, 8, 4, double> acc;
    wmma::fill_fragment(acc, 0.0);
    for (int i = 0; i < 16; i += 4) {
        wmma::load_matrix_sync(x, a + i, 16);
        wmma::load_matrix_sync(y, b + i, 16);
        wmma::mma_sync(acc, x, y, acc);
    }
    wmma::store_matrix_sync(c, acc, 8, wmma::mem_row_major);
}

// The operands lie in blocks of 16 x 16, one after another along k.
extern "C" __global__ void wmma_int8(int *c, const signed char *a, const signed char *b) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, int> acc;
    wmma::fill_fragment(acc, 0);
    for (int i = 0; i < 64; i += 16) {
        wmma::load_matrix_sync(x, a + i * 16, 16);
        wmma::load_matrix_sync(y, b + i * 16, 16);
        wmma::mma_sync(acc, x, y, acc, true);
    }
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_row_major);
}
