// Compiled without optimisation and with full debug information: everything lives in local memory, calls stay calls.
// target: sm_80
// flags: -G

__device__ float square(float x) { return x * x; }

struct Body {
    float position[3];
    float mass;
};

__device__ void pull(float *force, const Body &a, const Body &b) {
    float d[3], r2 = 0.01f;
    for (int i = 0; i < 3; i++) {
        d[i] = b.position[i] - a.position[i];
        r2 += square(d[i]);
    }
    float w = b.mass / (r2 * sqrtf(r2));
    for (int i = 0; i < 3; i++) force[i] += w * d[i];
}

extern "C" __global__ void bodies(float *forces, const Body *all, int n) {
    __shared__ Body tile[32];
    Body mine = all[blockIdx.x * 32 + threadIdx.x];
    float force[3] = {0.0f, 0.0f, 0.0f};
    for (int first = 0; first < n; first += 32) {
        tile[threadIdx.x] = all[first + threadIdx.x];
        __syncthreads();
        for (int j = 0; j < 32; j++) pull(force, mine, tile[j]);
        __syncthreads();
    }
    for (int i = 0; i < 3; i++) forces[(blockIdx.x * 32 + threadIdx.x) * 3 + i] = force[i];
}
