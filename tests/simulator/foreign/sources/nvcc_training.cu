// Kernels of a training step: backward of softmax, layer norm, cross entropy and an embedding; dropout, Adam, a norm.
// target: sm_80
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ float warp_sum(float x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

extern "C" __global__ void softmax_backward(__half *dx, const __half *dy, const __half *y, int columns) {
    // A warp for each row, eight halves at a time.
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const uint4 *gradient = (const uint4 *)(dy + row * columns), *value = (const uint4 *)(y + row * columns);
    float dot = 0;
    for (int i = lane; i < columns / 8; i += 32) {
        uint4 a = gradient[i], b = value[i];
        const __half2 *p = (const __half2 *)&a, *q = (const __half2 *)&b;
        for (int k = 0; k < 4; k++) {
            float2 u = __half22float2(p[k]), v = __half22float2(q[k]);
            dot += u.x * v.x + u.y * v.y;
        }
    }
    dot = warp_sum(dot);
    for (int i = lane; i < columns / 8; i += 32) {
        uint4 a = gradient[i], b = value[i], c;
        const __half2 *p = (const __half2 *)&a, *q = (const __half2 *)&b;
        __half2 *r = (__half2 *)&c;
        for (int k = 0; k < 4; k++) {
            float2 u = __half22float2(p[k]), v = __half22float2(q[k]);
            r[k] = __floats2half2_rn((u.x - dot) * v.x, (u.y - dot) * v.y);
        }
        ((uint4 *)(dx + row * columns))[i] = c;
    }
}

extern "C" __global__ void layer_norm_backward(float *dx, float *dweight, float *dbias, const float *dy, const float *x,
                                               const float *weight, const float *mean, const float *inverse, int rows,
                                               int columns) {
    // Blocks stride over rows and keep sums of columns in shared memory, which they add to the result at their end.
    extern __shared__ float sums[];
    __shared__ float parts[2][8];
    int t = threadIdx.x, warp = t / 32, warps = blockDim.x / 32;
    for (int i = t; i < 2 * columns; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        float first = 0, second = 0;
        for (int i = t; i < columns; i += blockDim.x) {
            float hat = (x[row * columns + i] - mean[row]) * inverse[row], g = dy[row * columns + i];
            first += g * weight[i];
            second += g * weight[i] * hat;
            sums[i] += g * hat;
            sums[columns + i] += g;
        }
        first = warp_sum(first);
        second = warp_sum(second);
        __syncthreads();
        if (t % 32 == 0) parts[0][warp] = first, parts[1][warp] = second;
        __syncthreads();
        first = second = 0;
        for (int w = 0; w < warps; w++) first += parts[0][w], second += parts[1][w];
        for (int i = t; i < columns; i += blockDim.x) {
            float hat = (x[row * columns + i] - mean[row]) * inverse[row];
            dx[row * columns + i] = inverse[row] * (dy[row * columns + i] * weight[i] - (first + hat * second) / columns);
        }
    }
    for (int i = t; i < columns; i += blockDim.x) {
        atomicAdd(dweight + i, sums[i]);
        atomicAdd(dbias + i, sums[columns + i]);
    }
}

__device__ float uniform(unsigned long long z) {
    // SplitMix64; the upper 24 bits.
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

extern "C" __global__ void dropout(float *out, unsigned char *mask, const float *in, float keep, unsigned long long seed,
                                   int n) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) return;
    float4 u = make_float4(uniform(seed + i), uniform(seed + i + 1), uniform(seed + i + 2), uniform(seed + i + 3));
    float4 x = *(const float4 *)(in + i);
    uchar4 m = make_uchar4(u.x < keep, u.y < keep, u.z < keep, u.w < keep);
    *(float4 *)(out + i) = make_float4(m.x ? x.x / keep : 0, m.y ? x.y / keep : 0, m.z ? x.z / keep : 0, m.w ? x.w / keep : 0);
    *(uchar4 *)(mask + i) = m;
}

extern "C" __global__ void adam(float *p, float *m, float *v, const __nv_bfloat16 *g, __nv_bfloat16 *low, float rate,
                                float correction1, float correction2, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float gradient = __bfloat162float(g[i]);
        float first = m[i] = 0.9f * m[i] + 0.1f * gradient;
        float second = v[i] = 0.999f * v[i] + 0.001f * gradient * gradient;
        float value = p[i] - rate * (first * correction1 / (sqrtf(second * correction2) + 1e-8f) + 0.01f * p[i]);
        p[i] = value;
        low[i] = __float2bfloat16_rn(value);
    }
}

extern "C" __global__ void embedding_backward(float *weight, const float *dy, const long long *tokens, int width) {
    // Several tokens are the same: their rows meet.
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float2 *row = (float2 *)(weight + tokens[blockIdx.x] * width) + i / 2;
        if (i % 2 == 0) {
            atomicAdd(&row->x, dy[blockIdx.x * width + i]);
            atomicAdd(&row->y, dy[blockIdx.x * width + i + 1]);
        }
    }
}

extern "C" __global__ void gradient_norm(float *total, unsigned *count, float *partial, const float *x, int n) {
    // Square root of a sum of squares; the last block to finish adds the blocks' parts.
    __shared__ float parts[4];
    __shared__ bool last;
    int t = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if (t % 32 == 0) parts[t / 32] = sum;
    __syncthreads();
    if (t == 0) {
        partial[blockIdx.x] = parts[0] + parts[1] + parts[2] + parts[3];
        __threadfence();
        last = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || t >= 32) return;
    __threadfence();
    sum = t < gridDim.x ? __ldcg(partial + t) : 0;
    sum = warp_sum(sum);
    if (t == 0) *total = sqrtf(sum);
}
