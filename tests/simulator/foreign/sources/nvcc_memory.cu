// Constant memory, module variables, vector and cached accesses, structures of odd size, byte and short accesses, volatile.
// target: sm_80
#include <cuda_fp16.h>

__constant__ float taps[7] = {0.0625f, -0.125f, 0.25f, 1.0f, 0.25f, -0.125f, 0.0625f};
__constant__ char message[] = "constant text";
__constant__ double table[2][3] = {{1.5, 2.5, -3.5}, {1e-3, 1e3, 1e300}};
__device__ int counter = 41;
__device__ float scratch[256];
__device__ const unsigned short primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ int *pointer_to_counter = &counter;

extern "C" __global__ void convolution(float *out, const float *in, int n) {
    __shared__ float tile[64 + 6];
    int first = blockIdx.x * 64;
    for (int i = threadIdx.x; i < 70; i += 64) {
        int at = first + i - 3;
        tile[i] = at >= 0 && at < n ? in[at] : 0.0f;
    }
    __syncthreads();
    float y = 0.0f;
#pragma unroll
    for (int i = 0; i < 7; i++) y += taps[i] * tile[threadIdx.x + i];
    if (first + threadIdx.x < n) out[first + threadIdx.x] = y;
}

extern "C" __global__ void variables(double *out, unsigned char *text) {
    int i = threadIdx.x;
    scratch[i] = i * 0.5f;
    if (i == 0) *pointer_to_counter += 1;
    __syncthreads();
    out[i] = scratch[31 - i] + counter + primes[i % 8] + table[i % 2][i % 3];
    if (i < sizeof(message)) text[i] = message[i];
}

struct __align__(4) Pixel {
    unsigned char r, g, b;
    half weight;
};

extern "C" __global__ void vectors(float4 *out, const float2 *in, const uchar4 *bytes, Pixel *pixels, longlong2 *wide, short3 *odd) {
    int i = threadIdx.x;
    float2 x = __ldg(in + i), y = __ldcs(in + 32 + i);
    uchar4 b = bytes[i];
    __stwt(out + i, make_float4(x.x + y.x, x.y - y.y, b.x * 256 + b.y, b.z - b.w));
    Pixel p = pixels[i];
    p.r += p.g;
    p.g = 255 - p.b;
    p.b ^= 0x55;
    p.weight = __hmul(p.weight, __float2half(0.5f));
    pixels[i] = p;
    longlong2 w = wide[i];
    wide[i] = make_longlong2(w.y, -w.x);
    short3 o = odd[i];
    odd[i] = make_short3(o.z, o.x, o.y);
}

extern "C" __global__ void spaces(int *out, int which) {
    // A generic pointer whose space is known only when the kernel runs.
    __shared__ int inside[32];
    int own[4] = {1, 2, 3, 4};
    inside[threadIdx.x] = threadIdx.x * 10;
    __syncthreads();
    int *p = which == 0 ? inside + (threadIdx.x ^ 1) : which == 1 ? own + threadIdx.x % 4 : out + 32 + threadIdx.x;
    out[threadIdx.x] = *p + (__isShared(p) ? 1000 : 0) + (__isLocal(p) ? 2000 : 0) + (__isGlobal(p) ? 3000 : 0);
    __syncthreads();
    *p = 5;
    __syncthreads();
    out[64 + threadIdx.x] = own[threadIdx.x % 4] + inside[threadIdx.x];
}
