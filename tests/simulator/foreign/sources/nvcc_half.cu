// float16 and bfloat16 intrinsics, single and packed.
// target: sm_80
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void half_operations(half2 *out, const half2 *a, const half2 *b, int n) {
    int i = threadIdx.x;
    half2 x = a[i], y = b[i];
    out[0 * n + i] = __hadd2(x, y);
    out[1 * n + i] = __hsub2(x, y);
    out[2 * n + i] = __hmul2(x, y);
    out[3 * n + i] = __hfma2(x, y, x);
    out[4 * n + i] = __hfma2_relu(x, y, y);
    out[5 * n + i] = __hfma2_sat(x, y, y);
    out[6 * n + i] = __hmax2(x, y);
    out[7 * n + i] = __hmin2_nan(x, y);
    out[8 * n + i] = __hneg2(__habs2(x));
    out[9 * n + i] = h2exp2(x);
    out[10 * n + i] = h2sqrt(__habs2(x));
    out[11 * n + i] = __h2div(x, y);
    out[12 * n + i] = h2rint(__hmul2(x, __float2half2_rn(5.0f)));
    out[13 * n + i] = __hgt2(x, y);
    out[14 * n + i] = __halves2half2(__high2half(x), __hlt(__low2half(x), __low2half(y)) ? __low2half(x) : __high2half(y));
    out[15 * n + i] = __floats2half2_rn(__low2float(x) * 3.0f, __half2float(__high2half(y)) / 7.0f);
    out[16 * n + i] = __halves2half2(__int2half_rn(__half2int_rz(__low2half(x)) * 9), __short2half_rn(i * 100));
    out[17 * n + i] = h2tanh_approx(x);
}

extern "C" __global__ void bfloat_operations(__nv_bfloat162 *out, const __nv_bfloat162 *a, const __nv_bfloat162 *b, int n) {
    int i = threadIdx.x;
    __nv_bfloat162 x = a[i], y = b[i];
    out[0 * n + i] = __hadd2(x, y);
    out[1 * n + i] = __hmul2(x, y);
    out[2 * n + i] = __hfma2(x, y, x);
    out[3 * n + i] = __hmax2(x, y);
    out[4 * n + i] = __hsub2(__habs2(x), y);
    out[5 * n + i] = __hfma2_relu(x, y, y);
    out[6 * n + i] = __floats2bfloat162_rn(__low2float(x) * 3.0f, __high2float(y) / 7.0f);
    out[7 * n + i] = h2exp(x);
    out[8 * n + i] = __hle2(x, y);
    out[9 * n + i] = __halves2bfloat162(__float2bfloat16_rz(__low2float(x) * 1.2345f), __int2bfloat16_rn(i * 1001));
}
