// Formatted output and assertions on the device.
// target: sm_80
#include <cassert>
#include <cstdio>

extern "C" __global__ void hello(const float *in, int n) {
    int i = threadIdx.x;
    if (i < n) printf("thread %d of block (%u, %u): %f and %s %lld %c %5.2e %x\n", i, blockIdx.x, blockIdx.y, in[i],
                      i % 2 ? "odd" : "even", (long long)i << 40, 'a' + i, in[i] * 1000.0, i * 255);
    if (i == 0 && blockIdx.x == 0) printf("100%%\n");
}

extern "C" __global__ void asserting(int *out, const int *in) {
    assert(in[threadIdx.x] >= 0);
    out[threadIdx.x] = in[threadIdx.x] + 1;
}
