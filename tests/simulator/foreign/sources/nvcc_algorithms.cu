// Classic block algorithms: scan, bitonic sort, Fourier transform, matrix product with float4, transpose, work queue.
// target: sm_80

extern "C" __global__ void scan(int *out, const int *in, int n) {
    // Up-sweep and down-sweep over 2 * blockDim.x values in dynamic shared memory.
    extern __shared__ int tree[];
    int t = threadIdx.x, offset = 1;
    tree[2 * t] = in[2 * t];
    tree[2 * t + 1] = in[2 * t + 1];
    for (int d = n / 2; d > 0; d /= 2, offset *= 2) {
        __syncthreads();
        if (t < d) tree[offset * (2 * t + 2) - 1] += tree[offset * (2 * t + 1) - 1];
    }
    if (t == 0) tree[n - 1] = 0;
    for (int d = 1; d < n; d *= 2) {
        offset /= 2;
        __syncthreads();
        if (t < d) {
            int left = offset * (2 * t + 1) - 1, right = offset * (2 * t + 2) - 1, x = tree[left];
            tree[left] = tree[right];
            tree[right] += x;
        }
    }
    __syncthreads();
    out[2 * t] = tree[2 * t];
    out[2 * t + 1] = tree[2 * t + 1];
}

extern "C" __global__ void bitonic(unsigned long long *keys) {
    __shared__ unsigned long long tile[128];
    int t = threadIdx.x;
    tile[t] = keys[blockIdx.x * 128 + t];
    for (int size = 2; size <= 128; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            int other = t ^ step;
            if (other > t) {
                unsigned long long x = tile[t], y = tile[other];
                if ((x > y) == ((t & size) == 0)) {
                    tile[t] = y;
                    tile[other] = x;
                }
            }
        }
    __syncthreads();
    keys[blockIdx.x * 128 + t] = tile[t];
}

extern "C" __global__ void fourier(float2 *out, const float2 *in) {
    __shared__ float2 x[128];
    int t = threadIdx.x;
    for (int i = t; i < 128; i += 64) x[__brev(i) >> 25] = in[blockIdx.x * 128 + i];
    for (int half = 1; half < 128; half *= 2) {
        __syncthreads();
        int k = t % half, at = t / half * half * 2 + k;
        float s, c;
        sincospif(-(float)k / half, &s, &c);
        float2 u = x[at], v = x[at + half];
        float2 w = make_float2(v.x * c - v.y * s, v.x * s + v.y * c);
        x[at] = make_float2(u.x + w.x, u.y + w.y);
        x[at + half] = make_float2(u.x - w.x, u.y - w.y);
    }
    __syncthreads();
    for (int i = t; i < 128; i += 64) out[blockIdx.x * 128 + i] = x[i];
}

extern "C" __global__ void __launch_bounds__(64, 4) product(float *c, const float4 *a, const float *b, int n, int k) {
    // 32 x 32 of c for each block, 4 x 4 for each thread.
    __shared__ float left[8][32 + 1], right[8][32];
    int t = threadIdx.x, row = t / 8 * 4, col = t % 8 * 4;
    float acc[4][4] = {};
    for (int depth = 0; depth < k; depth += 8) {
        float4 x = a[((blockIdx.y * 32 + t / 2) * k + depth) / 4 + t % 2];
        left[t % 2 * 4][t / 2] = x.x;
        left[t % 2 * 4 + 1][t / 2] = x.y;
        left[t % 2 * 4 + 2][t / 2] = x.z;
        left[t % 2 * 4 + 3][t / 2] = x.w;
        for (int i = t; i < 256; i += 64) right[i / 32][i % 32] = b[(depth + i / 32) * n + blockIdx.x * 32 + i % 32];
        __syncthreads();
        for (int p = 0; p < 8; p++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) acc[i][j] += left[p][row + i] * right[p][col + j];
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        *reinterpret_cast<float4 *>(c + (blockIdx.y * 32 + row + i) * n + blockIdx.x * 32 + col) =
            make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
}

extern "C" __global__ void transpose(float *out, const float *in, int width, int height) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += blockDim.y)
        if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += blockDim.y)
        if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

extern "C" __global__ void work_queue(int *depth, int *next, const int *parent, int n) {
    // Blocks take items until none is left; an item's depth is its distance to the root.
    __shared__ int item;
    while (true) {
        if (threadIdx.x == 0) item = atomicAdd(next, blockDim.x);
        __syncthreads();
        int mine = item + threadIdx.x;
        if (item >= n) return;
        if (mine < n) {
            int count = 0;
            for (int at = mine; at != 0; at = parent[at]) count++;
            depth[mine] = count;
        }
        __syncthreads();
    }
}

extern "C" __global__ void philox(uint4 *out, unsigned seed) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    uint4 c = make_uint4(i, 0, 0, 0);
    unsigned k0 = seed, k1 = 0;
    for (int round = 0; round < 10; round++) {
        unsigned h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x, h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[i] = c;
}
