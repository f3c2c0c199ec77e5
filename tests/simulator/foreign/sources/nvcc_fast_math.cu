// Single precision with --use_fast_math: approximate functions that flush subnormal numbers.
// target: sm_80
// flags: --use_fast_math

extern "C" __global__ void fast_functions(float *out, const float *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = in[i];
    out[0 * n + i] = expf(x);
    out[1 * n + i] = logf(x);
    out[2 * n + i] = sinf(x);
    out[3 * n + i] = cosf(x);
    out[4 * n + i] = tanhf(x);
    out[5 * n + i] = powf(x, 1.5f);
    out[6 * n + i] = sqrtf(x);
    out[7 * n + i] = 1.0f / x;
    out[8 * n + i] = rsqrtf(x);
    out[9 * n + i] = x / (x + 3.0f);
    out[10 * n + i] = x * 1.0e-38f * 1.0e-3f;
    out[11 * n + i] = __saturatef(x - 1.0f);
}

extern "C" __global__ void gelu(float4 *out, const float4 *in) {
    auto f = [](float x) { return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); };
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float4 x = in[i];
    out[i] = make_float4(f(x.x), f(x.y), f(x.z), f(x.w));
}
