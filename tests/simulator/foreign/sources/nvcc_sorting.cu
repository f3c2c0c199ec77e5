// Sorting: one pass of a radix sort in three kernels, a merge by diagonals, runs of equal keys, bytes four at a time.
// target: sm_75

extern "C" __global__ void digits(unsigned *counts, const unsigned *keys, int n, int shift) {
    __shared__ unsigned bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(bins + (keys[i] >> shift & 15), 1u);
    __syncthreads();
    if (threadIdx.x < 16) counts[threadIdx.x * gridDim.x + blockIdx.x] = bins[threadIdx.x];
}

extern "C" __global__ void scatter(unsigned *out, const unsigned *keys, const unsigned *starts, int n, int shift) {
    // Lanes with the same digit find each other; warps take their turns.
    __shared__ unsigned next[16];
    int t = threadIdx.x, lane = t % 32, i = blockIdx.x * blockDim.x + t;
    if (t < 16) next[t] = starts[t * gridDim.x + blockIdx.x];
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        __syncthreads();
        if (t / 32 != warp || i >= n) continue;
        unsigned active = __activemask(), digit = keys[i] >> shift & 15;
        unsigned same = __match_any_sync(active, digit), rank = __popc(same & ((1u << lane) - 1));
        unsigned base = next[digit];
        __syncwarp(active);
        if (rank == 0) next[digit] = base + __popc(same);
        out[base + rank] = keys[i];
    }
}

extern "C" __global__ void merge(int *out, const int *a, const int *b, int na, int nb) {
    // Each thread merges eight, from where its diagonal crosses the path.
    int diagonal = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (diagonal >= na + nb) return;
    int low = max(0, diagonal - nb), high = min(diagonal, na);
    while (low < high) {
        int middle = (low + high) / 2;
        if (a[middle] <= b[diagonal - 1 - middle]) low = middle + 1;
        else high = middle;
    }
    int i = low, j = diagonal - low;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (diagonal + k >= na + nb) break;
        out[diagonal + k] = j >= nb || (i < na && a[i] <= b[j]) ? a[i++] : b[j++];
    }
}

extern "C" __global__ void segments(int *out, const int *in, const unsigned char *first, int n) {
    // A scan that begins anew where a flag is set: by ballots within warps, by carries between them.
    __shared__ int carry[8];
    __shared__ unsigned has[8];
    int t = threadIdx.x, lane = t % 32, warp = t / 32, i = blockIdx.x * 256 + t;
    int x = i < n ? in[i] : 0;
    unsigned flags = __ballot_sync(~0u, i < n && (first[i] || t == 0));
    unsigned before = flags & (~0u >> (31 - lane));
    int start = before ? 31 - __clz(before) : 0;
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(~0u, x, d);
        if (lane - d >= start) x += other;
    }
    if (lane == 31) carry[warp] = x;
    if (lane == 0) has[warp] = flags;
    __syncthreads();
    if (!before)
        for (int w = warp - 1; w >= 0; w--) {
            x += carry[w];
            if (has[w]) break;
        }
    if (i < n) out[i] = x;
}

extern "C" __global__ void runs(int *keys, int *lengths, int *count, const int *in, int n) {
    __shared__ int starts[129], total;
    int t = threadIdx.x;
    bool head = t < n && (t == 0 || in[t] != in[t - 1]);
    int rank = __syncthreads_count(head);
    if (t == 0) total = rank, *count = rank, starts[rank] = n;
    __shared__ int warps[4];
    unsigned votes = __ballot_sync(~0u, head);
    if (t % 32 == 0) warps[t / 32] = __popc(votes);
    __syncthreads();
    int at = __popc(votes & ((1u << t % 32) - 1));
    for (int w = 0; w < t / 32; w++) at += warps[w];
    if (head) starts[at] = t, keys[at] = in[t];
    __syncthreads();
    if (t < total) lengths[t] = starts[t + 1] - starts[t];
}

extern "C" __global__ void bytes(unsigned *out, const unsigned *a, const unsigned *b) {
    int i = threadIdx.x;
    unsigned x = a[i], y = b[i], *o = out + 16 * i;
    o[0] = __vadd4(x, y), o[1] = __vsubss4(x, y), o[2] = __vabsdiffs4(x, y), o[3] = __vavgu4(x, y);
    o[4] = __vmaxs2(x, y), o[5] = __vcmpgtu4(x, y), o[6] = __vsadu4(x, y), o[7] = __vaddus2(x, y);
    o[8] = __byte_perm(x, y, 0x2461), o[9] = __usad(x, y, 7), o[10] = __funnelshift_l(x, y, x & 31), o[11] = __mulhi((int)x, (int)y);
    asm("vadd.s32.u32.s32.sat %0, %1.b2, %2.h1;" : "=r"(o[12]) : "r"(x), "r"(y));
    asm("vmad.s32.s32.u32.shr7 %0, %1.h0, %2.b3, %3;" : "=r"(o[13]) : "r"(x), "r"(y), "r"(x));
    asm("vshl.u32.u32.u32.clamp.min %0, %1.h1, %2.b0, %3;" : "=r"(o[14]) : "r"(x), "r"(y), "r"(y));
    asm("vset4.u32.s32.lt.add %0, %1, %2, %3;" : "=r"(o[15]) : "r"(x), "r"(y), "r"(x));
}
