// Blocks and warps that share memory: locks, queues, tables and lists, scans that look back, scopes, seats at a barrier.
// target: sm_90
#include <cuda/atomic>
#include <cuda/barrier>

extern "C" __global__ void hash_insert(unsigned long long *table, int *distinct, const unsigned *keys, int n, int mask) {
    // Open addressing with 64-bit words of key and count.
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned key = keys[i];
    for (unsigned at = key * 2654435761u & mask;; at = (at + 1) & mask) {
        unsigned long long old = atomicCAS(table + at, 0ull, (unsigned long long)key << 32 | 1);
        if (old == 0) {
            atomicAdd(distinct, 1);
            return;
        }
        if (old >> 32 == key) {
            atomicAdd(table + at, 1ull);
            return;
        }
    }
}

extern "C" __global__ void push(int *head, int *next, int *value, int n) {
    // Lists of four buckets; nodes are linked by compare and swap.
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    value[i] = 3 * i;
    cuda::atomic_ref<int, cuda::thread_scope_device> top(head[i % 4]);
    int old = top.load(cuda::memory_order_relaxed);
    do next[i] = old;
    while (!top.compare_exchange_weak(old, i, cuda::memory_order_release, cuda::memory_order_relaxed));
}

extern "C" __global__ void ticket(int *next, int *serving, double *balance, int *order) {
    // A lock that is fair; what it guards is not atomic.
    if (threadIdx.x != 0) return;
    cuda::atomic_ref<int, cuda::thread_scope_device> tickets(*next), now(*serving);
    for (int round = 0; round < 3; round++) {
        int mine = tickets.fetch_add(1, cuda::memory_order_relaxed);
        while (now.load(cuda::memory_order_acquire) != mine) __nanosleep(20);
        *balance = *balance * 0.5 + 1;
        order[mine] = blockIdx.x;
        now.store(mine + 1, cuda::memory_order_release);
    }
}

extern "C" __global__ void system_counters(unsigned *counts, unsigned long long *wide, float *sum, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd_system(counts, 1u);
    atomicMax_system(counts + 1, (unsigned)(i * 7 % 1001));
    atomicAdd_block(counts + 2 + blockIdx.x, (unsigned)i);
    atomicXor_system(wide, 1ull << (i % 64));
    cuda::atomic_ref<float, cuda::thread_scope_system>(*sum).fetch_add(0.25f, cuda::memory_order_relaxed);
    cuda::atomic_ref<unsigned long long, cuda::thread_scope_block>(wide[1 + blockIdx.x]).fetch_min(i * 3);
}

extern "C" __global__ void look_back(int *out, const int *in, unsigned long long *state, int n) {
    // A scan in one pass: each block publishes its sum, then looks back for the sums before it. State: flag << 32 | sum.
    __shared__ int warps[4], before;
    int t = threadIdx.x, i = blockIdx.x * 128 + t, lane = t % 32, x = i < n ? in[i] : 0, sum = x;
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
    }
    if (lane == 31) warps[t / 32] = sum;
    __syncthreads();
    for (int w = 0; w < t / 32; w++) sum += warps[w];
    if (t == 127) {
        cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> mine(state[blockIdx.x]);
        mine.store((blockIdx.x ? 1ull : 2ull) << 32 | (unsigned)sum, cuda::memory_order_release);
        int carry = 0;
        for (int block = blockIdx.x - 1; block >= 0;) {
            cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> other(state[block]);
            unsigned long long found = other.load(cuda::memory_order_acquire);
            if (found >> 32 == 0) continue;
            carry += (int)(unsigned)found;
            if (found >> 32 == 2) break;
            block--;
        }
        if (blockIdx.x) mine.store(2ull << 32 | (unsigned)(carry + sum), cuda::memory_order_release);
        before = carry;
    }
    __syncthreads();
    if (i < n) out[i] = before + sum;
}

extern "C" __global__ void persistent(int *out, int *queue, const int *work, int items) {
    // Blocks take pieces of work until there are none.
    __shared__ int item;
    for (;;) {
        if (threadIdx.x == 0) item = atomicAdd(queue, 1);
        __syncthreads();
        int mine = item;
        if (mine >= items) break;
        int x = work[mine] + threadIdx.x, steps = 0;
        while (x > 1 && steps < 40) x = x & 1 ? 3 * x + 1 : x / 2, steps++;
        out[mine * 64 + threadIdx.x] = steps;
        __syncthreads();
    }
}

__device__ volatile int sense;
__device__ int arrived;

extern "C" __global__ void rounds(int *data, int count) {
    // A barrier of all blocks that reverses its sense, made of a counter, a volatile flag and fences.
    int t = threadIdx.x, mine = 0;
    for (int round = 0; round < count; round++) {
        int value = data[(round % 2) * gridDim.x * 32 + (blockIdx.x * 32 + t + 1) % (gridDim.x * 32)];
        data[((round + 1) % 2) * gridDim.x * 32 + blockIdx.x * 32 + t] = value + 1;
        mine = !mine;
        __syncthreads();
        if (t == 0) {
            __threadfence();
            if (atomicAdd(&arrived, 1) == gridDim.x - 1) {
                arrived = 0;
                __threadfence();
                sense = mine;
            } else
                while (sense != mine) {}
            __threadfence();
        }
        __syncthreads();
    }
}

extern "C" __global__ void sequence(int *version, int2 *pair, int *torn) {
    // A writer and readers with a version that is odd while the pair changes.
    cuda::atomic_ref<int, cuda::thread_scope_device> v(*version);
    cuda::atomic_ref<int, cuda::thread_scope_device> x(pair->x), y(pair->y);
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        for (int i = 1; i <= 20; i++) {
            v.store(2 * i - 1, cuda::memory_order_relaxed);
            cuda::atomic_thread_fence(cuda::memory_order_release, cuda::thread_scope_device);
            x.store(i, cuda::memory_order_relaxed);
            y.store(-i, cuda::memory_order_relaxed);
            v.store(2 * i, cuda::memory_order_release);
        }
        return;
    }
    for (int seen = 0; seen < 20;) {
        int before = v.load(cuda::memory_order_acquire);
        int a = x.load(cuda::memory_order_relaxed), b = y.load(cuda::memory_order_relaxed);
        cuda::atomic_thread_fence(cuda::memory_order_acquire, cuda::thread_scope_device);
        if (before % 2 == 0 && v.load(cuda::memory_order_relaxed) == before) {
            if (a != -b) atomicAdd(torn, 1);
            seen = a;
        }
    }
}

extern "C" __global__ void relay(int *out, const int *in) {
    // Two groups of warps hand a buffer to and fro through barriers that each of them seats.
    using Barrier = cuda::barrier<cuda::thread_scope_block>;
    __shared__ int buffer[64];
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ Barrier full, empty;
    int t = threadIdx.x;
    if (t == 0) {
        init(&full, 128);
        init(&empty, 128);
    }
    __syncthreads();
    if (t < 64) {
        for (int i = 0; i < 5; i++) {
            buffer[t] = in[i * 64 + t];
            (void)full.arrive();
            empty.arrive_and_wait();
        }
    } else {
        for (int i = 0; i < 5; i++) {
            full.arrive_and_wait();
            out[i * 64 + t - 64] = buffer[127 - t] * 2;
            (void)empty.arrive();
        }
    }
}
