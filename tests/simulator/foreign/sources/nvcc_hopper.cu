// Hopper by hand: a matrix product whose warps have roles, fed by tensor maps through a ring of mbarriers and stored by one;
// blocks of a cluster that send each other words and bulk copies.
// target: sm_90a
#include <cuda.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void wait(uint64_t *barrier, int parity) {
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
                 ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

__device__ __forceinline__ bool elected() {
    uint32_t is;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is));
    return is;
}

__device__ __forceinline__ void load_tile(void *to, const CUtensorMap *map, int x, int y, uint64_t *barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(to)), "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ uint64_t descriptor(const void *p) {
    // Rows of 128 bytes with the 128-byte swizzle, eight rows to a group of 1024 bytes.
    return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

extern "C" __global__ void __launch_bounds__(256, 1)
matmul_roles(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
             const __grid_constant__ CUtensorMap map_c, int k) {
    // c[64, 64] of a[m, k] and b[n, k]; three stages of 64 columns.
    constexpr int stages = 3;
    extern __shared__ __align__(1024) unsigned char memory[];
    __half *a = (__half *)memory, *b = a + stages * 64 * 64, *c = b + stages * 64 * 64;
    __shared__ uint64_t full[stages], empty[stages];
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + i)));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(shared_address(empty + i)));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp >= 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 4 && elected()) {
            for (int step = 0; step < k / 64; step++) {
                int stage = step % stages;
                wait(empty + stage, step / stages % 2 ^ 1);
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                             ::"r"(shared_address(full + stage)), "r"(2 * 64 * 64 * 2) : "memory");
                load_tile(a + stage * 64 * 64, &map_a, step * 64, blockIdx.y * 64, full + stage);
                load_tile(b + stage * 64 * 64, &map_b, step * 64, blockIdx.x * 64, full + stage);
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float acc[32];
    for (int i = 0; i < 32; i++) acc[i] = 0;
    for (int step = 0; step < k / 64; step++) {
        int stage = step % stages;
        wait(full + stage, step / stages % 2);
        for (int i = 0; i < 32; i++) asm volatile("" : "+f"(acc[i])::"memory");
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int depth = 0; depth < 4; depth++) {
            uint64_t x = descriptor(a + stage * 64 * 64) + depth * 2, y = descriptor(b + stage * 64 * 64) + depth * 2;
            asm volatile(
                "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
                "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
                : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]), "+f"(acc[4]), "+f"(acc[5]), "+f"(acc[6]), "+f"(acc[7]),
                  "+f"(acc[8]), "+f"(acc[9]), "+f"(acc[10]), "+f"(acc[11]), "+f"(acc[12]), "+f"(acc[13]), "+f"(acc[14]),
                  "+f"(acc[15]), "+f"(acc[16]), "+f"(acc[17]), "+f"(acc[18]), "+f"(acc[19]), "+f"(acc[20]), "+f"(acc[21]),
                  "+f"(acc[22]), "+f"(acc[23]), "+f"(acc[24]), "+f"(acc[25]), "+f"(acc[26]), "+f"(acc[27]), "+f"(acc[28]),
                  "+f"(acc[29]), "+f"(acc[30]), "+f"(acc[31])
                : "l"(x), "l"(y));
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        for (int i = 0; i < 32; i++) asm volatile("" : "+f"(acc[i])::"memory");
        if (elected()) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(empty + stage)) : "memory");
    }
    int lane = threadIdx.x % 32;
    for (int j = 0; j < 64; j += 16) {
        uint32_t word[4];
        for (int i = 0; i < 4; i++) {
            __half2 pair = __floats2half2_rn(acc[j / 2 + 2 * i], acc[j / 2 + 2 * i + 1]);
            word[i] = *(uint32_t *)&pair;
        }
        int row = warp * 16 + lane % 16, chunk = (j / 8 + lane / 16) ^ (row % 8);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(shared_address(c + row * 64 + chunk * 8)), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]) : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 128;" ::: "memory");
    if (warp == 0 && elected()) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];"
                     ::"l"(&map_c), "r"(blockIdx.x * 64), "r"(blockIdx.y * 64), "r"(shared_address(c)) : "memory");
        asm volatile("cp.async.bulk.commit_group;");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

__device__ __forceinline__ uint32_t of_rank(const void *p, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(rank));
    return there;
}

__device__ __forceinline__ void meet() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

extern "C" __global__ void __cluster_dims__(4, 1, 1) ring_sum(int *out, const int *in) {
    // Each block sends its words to the next by st.async; after three rounds all have seen all.
    __shared__ alignas(16) int inbox[3][64];
    __shared__ uint64_t arrived[3];
    int t = threadIdx.x, rank = blockIdx.x % 4;
    if (t < 3) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrived + t)));
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 256;" ::"r"(shared_address(arrived + t)));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    meet();
    int value = in[blockIdx.x * 64 + t], sum = value;
    for (int round = 0; round < 3; round++) {
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                     ::"r"(of_rank(&inbox[round][t], (rank + 1) % 4)), "r"(value), "r"(of_rank(arrived + round, (rank + 1) % 4)) : "memory");
        asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n@!done bra again;\n}"
                     ::"r"(shared_address(arrived + round)) : "memory");
        value = inbox[round][t];
        sum = sum * 3 + value;
    }
    out[blockIdx.x * 64 + t] = sum;
    meet();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange(float *out, const float *in) {
    // A bulk copy from one block's shared memory to the other's.
    __shared__ alignas(128) float mine[128], theirs[128];
    __shared__ uint64_t arrived;
    int t = threadIdx.x, other = blockIdx.x % 2 ^ 1;
    if (t == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived)));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 512;" ::"r"(shared_address(&arrived)));
    }
    mine[t] = in[blockIdx.x * 128 + t] * 2;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meet();
    if (t == 0)
        asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], 512, [%2];"
                     ::"r"(of_rank(theirs, other)), "r"(shared_address(mine)), "r"(of_rank(&arrived, other)) : "memory");
    wait(&arrived, 0);
    out[blockIdx.x * 128 + t] = theirs[127 - t] - mine[t];
    meet();
}
