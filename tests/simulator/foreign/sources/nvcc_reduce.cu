// Sums with warp shuffles, static and dynamic shared memory, a last-block pattern and a template over the type.
// target: sm_80

template <typename T>
__device__ T warp_sum(T x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(0xffffffffu, x, step);
    return x;
}

template <typename T>
__device__ T block_sum(T x, T *parts) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    if (warp == 0) {
        x = lane < (blockDim.x + 31) / 32 ? parts[lane] : T(0);
        x = warp_sum(x);
    }
    return x;
}

extern "C" __global__ void sum_float(float *out, const float *in, int n) {
    __shared__ float parts[32];
    float x = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) x += in[i];
    x = block_sum(x, parts);
    if (threadIdx.x == 0) atomicAdd(out, x);
}

extern "C" __global__ void sum_double(double *out, const double *in, int n) {
    __shared__ double parts[32];
    double x = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) x += in[i] * in[i];
    x = block_sum(x, parts);
    if (threadIdx.x == 0) *out = sqrt(x);
}

extern "C" __global__ void sum_tree(long long *out, const int *in) {
    extern __shared__ long long values[];
    values[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = values[0];
}

__device__ unsigned int finished = 0;

extern "C" __global__ void sum_last_block(float *out, volatile float *partial, const float *in, int n) {
    __shared__ float parts[32];
    __shared__ bool last;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float x = block_sum(i < n ? in[i] : 0.0f, parts);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = x;
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        __threadfence();
        float y = threadIdx.x < gridDim.x ? partial[threadIdx.x] : 0.0f;
        y = block_sum(y, parts);
        if (threadIdx.x == 0) *out = y;
    }
}
