// Consumer Blackwell: tensor cores on six- and four-bit floats with scales for blocks, and conversions to them.
// target: sm_120a
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>
#include <stdint.h>

extern "C" __global__ void scaled_mma(float *d, const uint32_t *a, const uint32_t *b, const uint8_t *scale_a, const uint8_t *scale_b) {
    // One m16n8k32 of six-bit by eight-bit floats; a[16][32] and b[8][32] in bytes, a scale for each row of 32.
    int lane = threadIdx.x, row = lane / 4, quad = lane % 4;
    uint32_t x[4] = {a[row * 8 + quad], a[(row + 8) * 8 + quad], a[row * 8 + quad + 4], a[(row + 8) * 8 + quad + 4]};
    uint32_t y[2] = {b[row * 8 + quad], b[row * 8 + quad + 4]};
    // Lanes 0 and 1 of a quad give the scales of rows r and r + 8, lane 0 that of a column.
    uint32_t sa = scale_a[row + (lane & 1) * 8], sb = scale_b[row];
    float c[4] = {};
    asm volatile("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e3m2.e4m3.f32.ue8m0 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "r"(sa), "r"(sb));
    for (int i = 0; i < 4; i++) d[(row + i / 2 * 8) * 8 + quad * 2 + i % 2] = c[i];
}

extern "C" __global__ void small_mma(float *d, const uint32_t *a, const uint32_t *b) {
    // Without scales: four-bit floats, each in the middle of a byte, by eight-bit ones.
    int lane = threadIdx.x, row = lane / 4, quad = lane % 4;
    uint32_t x[4] = {a[row * 8 + quad], a[(row + 8) * 8 + quad], a[row * 8 + quad + 4], a[(row + 8) * 8 + quad + 4]};
    uint32_t y[2] = {b[row * 8 + quad], b[row * 8 + quad + 4]};
    float c[4] = {1, 2, 3, 4};
    asm volatile("mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e2m1.e5m2.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    for (int i = 0; i < 4; i++) d[(row + i / 2 * 8) * 8 + quad * 2 + i % 2] = c[i];
}

extern "C" __global__ void narrow(uint8_t *codes, float2 *back, const float2 *in) {
    int t = threadIdx.x;
    float2 x = in[t];
    __nv_fp4x2_storage_t four = __nv_cvt_float2_to_fp4x2(x, __NV_E2M1, cudaRoundNearest);
    __nv_fp6x2_storage_t six = __nv_cvt_float2_to_fp6x2(x, __NV_E3M2, cudaRoundNearest);
    __nv_fp6x2_storage_t fine = __nv_cvt_float2_to_fp6x2(x, __NV_E2M3, cudaRoundNearest);
    __nv_fp8_storage_t scale = __nv_cvt_float_to_e8m0(fabsf(x.x) + 1, __NV_SATFINITE, cudaRoundPosInf);
    codes[t * 6] = four;
    codes[t * 6 + 1] = six & 255, codes[t * 6 + 2] = six >> 8;
    codes[t * 6 + 3] = fine & 255, codes[t * 6 + 4] = fine >> 8;
    codes[t * 6 + 5] = scale;
    __half2_raw h = __nv_cvt_fp4x2_to_halfraw2(four, __NV_E2M1);
    back[t] = __half22float2(*(__half2 *)&h);
}
