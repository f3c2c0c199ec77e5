// Kernels of a language model that generates: paged attention, a selective scan, four-bit weights, sampling, rotation.
// target: sm_80
#include <cuda_fp16.h>
#include <math_constants.h>

extern "C" __global__ void paged_attention(float *out, const __half *q, const __half *keys, const __half *values,
                                           const int *table, const int *lengths, int most_pages, float scale) {
    // One block for each sequence and head, 128 threads; pages of 16 tokens, heads of 64.
    __shared__ float scores[512], part[4], sum[64];
    int sequence = blockIdx.y, head = blockIdx.x, heads = gridDim.x, t = threadIdx.x, warp = t / 32, lane = t % 32;
    int length = lengths[sequence];
    const __half2 *query = (const __half2 *)(q + (sequence * heads + head) * 64);
    float2 mine = __half22float2(query[lane]);
    float most = -CUDART_INF_F;
    for (int token = warp; token < length; token += 4) {
        int page = table[sequence * most_pages + token / 16];
        const __half2 *key = (const __half2 *)(keys + ((page * heads + head) * 16 + token % 16) * 64);
        float2 k = __half22float2(key[lane]);
        float dot = mine.x * k.x + mine.y * k.y;
        for (int d = 16; d; d /= 2) dot += __shfl_xor_sync(~0u, dot, d);
        if (lane == 0) scores[token] = dot * scale;
        most = fmaxf(most, dot * scale);
    }
    if (lane == 0) part[warp] = most;
    __syncthreads();
    most = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
    float total = 0;
    for (int token = t; token < length; token += 128) total += scores[token] = __expf(scores[token] - most);
    for (int d = 16; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
    __syncthreads();
    if (lane == 0) part[warp] = total;
    if (t < 64) sum[t] = 0;
    __syncthreads();
    total = part[0] + part[1] + part[2] + part[3];
    float acc = 0;
    for (int token = t / 64; token < length; token += 2) {
        int page = table[sequence * most_pages + token / 16];
        acc += scores[token] * __half2float(values[((page * heads + head) * 16 + token % 16) * 64 + t % 64]);
    }
    atomicAdd(sum + t % 64, acc);
    __syncthreads();
    if (t < 64) out[(sequence * heads + head) * 64 + t] = sum[t] / total;
}

extern "C" __global__ void selective_scan(float *y, const float *x, const float *delta, const float *a, const float *b,
                                          const float *c, int length) {
    // A state space model: a warp for each channel, a state for each half warp's lane, two steps of time at once.
    int channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, state = lane % 16;
    int channels = gridDim.x * (blockDim.x / 32);
    float rate = a[channel * 16 + state], h = 0;
    for (int step = 0; step < length; step += 2) {
        int at = step + lane / 16;
        float d = delta[at * channels + channel], u = x[at * channels + channel];
        float decay = __expf(d * rate), input = d * u * b[at * 16 + state];
        // The second half warp's state follows from the first's.
        float other_decay = __shfl_sync(~0u, decay, state), other_input = __shfl_sync(~0u, input, state);
        float before = fmaf(other_decay, h, other_input);
        h = lane < 16 ? fmaf(decay, h, input) : fmaf(decay, before, input);
        float out = h * c[at * 16 + state];
        for (int k = 8; k; k /= 2) out += __shfl_xor_sync(~0u, out, k, 16);
        if (state == 0) y[at * channels + channel] = out;
        h = __shfl_sync(~0u, h, 16 + state);
    }
}

__device__ __forceinline__ void dequantize(unsigned packed, __half2 scale, __half2 zero, __half2 out[4]) {
    // Four-bit numbers become halves by giving them the exponent of 1024.
    for (int i = 0; i < 4; i++) {
        unsigned bits;
        asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(bits) : "r"(packed >> (4 * i)));
        __half2 number = __hsub2(*(__half2 *)&bits, __float2half2_rn(1024.0f));
        out[i] = __hfma2(number, scale, zero);
    }
}

extern "C" __global__ void gemv_int4(float *out, const unsigned *weights, const __half2 *scales, const __half2 *zeros,
                                     const __half *x, int k) {
    // A warp for each row of weights, eight of them in a word, the first in the lowest bits.
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float acc = 0;
    for (int i = lane; i < k / 8; i += 32) {
        __half2 w[4];
        int group = row * (k / 128) + i / 16;
        dequantize(__ldg(weights + row * (k / 8) + i), scales[group], zeros[group], w);
        const __half *v = x + 8 * i;
        for (int j = 0; j < 4; j++) {
            float2 f = __half22float2(w[j]);
            acc += f.x * __half2float(v[j]) + f.y * __half2float(v[j + 4]);
        }
    }
    for (int d = 16; d; d /= 2) acc += __shfl_down_sync(~0u, acc, d);
    if (lane == 0) out[row] = acc;
}

extern "C" __global__ void sample(int *token, const float *logits, const float *draw, int n) {
    // The first token at which the running sum of probabilities exceeds a number that was drawn.
    __shared__ float sums[8], most[8];
    __shared__ int chosen;
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const float *row = logits + blockIdx.x * n;
    float top = -CUDART_INF_F;
    for (int i = t; i < n; i += 256) top = fmaxf(top, row[i]);
    for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    if (lane == 0) most[warp] = top;
    if (t == 0) chosen = n - 1;
    __syncthreads();
    for (int w = 0; w < 8; w++) top = fmaxf(top, most[w]);
    float all = 0;
    for (int i = t; i < n; i += 256) all += __expf(row[i] - top);
    for (int d = 16; d; d /= 2) all += __shfl_xor_sync(~0u, all, d);
    if (lane == 0) sums[warp] = all;
    __syncthreads();
    all = 0;
    for (int w = 0; w < 8; w++) all += sums[w];
    float target = draw[blockIdx.x] * all, base = 0;
    for (int start = 0; start < n; start += 256) {
        float p = start + t < n ? __expf(row[start + t] - top) : 0, running = p;
        for (int d = 1; d < 32; d *= 2) {
            float other = __shfl_up_sync(~0u, running, d);
            if (lane >= d) running += other;
        }
        __syncthreads();
        if (lane == 31) sums[warp] = running;
        __syncthreads();
        float before = base;
        for (int w = 0; w < warp; w++) before += sums[w];
        if (before + running > target && start + t < n) atomicMin(&chosen, start + t);
        for (int w = 0; w < 8; w++) base += sums[w];
        if (__syncthreads_or(before + running > target)) break;
    }
    __syncthreads();
    if (t == 0) token[blockIdx.x] = chosen;
}

extern "C" __global__ void quantize_cache(signed char *cache, float *scales, const __half *x, const int *slots, int width) {
    // A row of a cache in eight bits with a scale of its own, written to the slot that a table names.
    __shared__ float most[4];
    int t = threadIdx.x;
    if (slots[blockIdx.x] < 0) return;
    float top = 0;
    for (int i = t; i < width; i += blockDim.x) top = fmaxf(top, fabsf(__half2float(x[blockIdx.x * width + i])));
    unsigned bits = __reduce_max_sync(~0u, __float_as_uint(top));
    if (t % 32 == 0) most[t / 32] = __uint_as_float(bits);
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; w++) top = fmaxf(top, most[w]);
    float scale = top / 127.0f;
    for (int i = t * 4; i < width; i += blockDim.x * 4) {
        char4 c;
        c.x = __float2int_rn(__half2float(x[blockIdx.x * width + i]) / scale);
        c.y = __float2int_rn(__half2float(x[blockIdx.x * width + i + 1]) / scale);
        c.z = __float2int_rn(__half2float(x[blockIdx.x * width + i + 2]) / scale);
        c.w = __float2int_rn(__half2float(x[blockIdx.x * width + i + 3]) / scale);
        *(char4 *)(cache + slots[blockIdx.x] * width + i) = c;
    }
    if (t == 0) scales[slots[blockIdx.x]] = scale;
}

extern "C" __global__ void largest_of_row(int *index, float *value, const float *x, int n, int wanted) {
    // The largest numbers one after the other, by an argmax over key and index packed in 64 bits.
    __shared__ unsigned long long best[4];
    int t = threadIdx.x;
    unsigned long long bound = ~0ull;
    for (int round = 0; round < wanted; round++) {
        unsigned long long mine = 0;
        for (int i = t; i < n; i += blockDim.x) {
            unsigned bits = __float_as_uint(x[blockIdx.x * n + i]);
            bits ^= (unsigned)((int)bits >> 31) | 0x80000000u;
            unsigned long long key = (unsigned long long)bits << 32 | (unsigned)(n - 1 - i);
            if (key < bound && key > mine) mine = key;
        }
        for (int d = 16; d; d /= 2) {
            unsigned long long other = __shfl_xor_sync(~0u, mine, d);
            mine = other > mine ? other : mine;
        }
        if (t % 32 == 0) best[t / 32] = mine;
        __syncthreads();
        for (int w = 0; w < blockDim.x / 32; w++) mine = best[w] > mine ? best[w] : mine;
        bound = mine;
        if (t == 0) {
            index[blockIdx.x * wanted + round] = n - 1 - (int)(unsigned)mine;
            value[blockIdx.x * wanted + round] = x[blockIdx.x * n + n - 1 - (int)(unsigned)mine];
        }
        __syncthreads();
    }
}
