// Calls that stay calls: noinline functions, structures by value, function pointers, switch tables, local arrays.
// target: sm_80

struct Complex {
    double re, im;
};

__device__ __noinline__ Complex multiply(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

__device__ __noinline__ float horner(const float *coefficients, int degree, float x) {
    float y = coefficients[degree];
    while (degree-- > 0) y = y * x + coefficients[degree];
    return y;
}

extern "C" __global__ void complex_power(Complex *out, const Complex *in, int power) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    Complex y = {1.0, 0.0};
    for (int k = 0; k < power; k++) y = multiply(y, in[i]);
    out[i] = y;
}

extern "C" __global__ void polynomial(float *out, const float *in, const float *coefficients, int degree) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = horner(coefficients, degree - i % 3, in[i]);
}

__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int subtract(int a, int b) { return a - b; }
__device__ __noinline__ int exclusive(int a, int b) { return a ^ b; }
typedef int (*Operation)(int, int);
__device__ Operation operations[3] = {add, subtract, exclusive};

extern "C" __global__ void indirect(int *out, const int *a, const int *b, const int *which) {
    int i = threadIdx.x;
    out[i] = operations[which[i]](a[i], b[i]);
}

extern "C" __global__ void interpreter(int *out, const unsigned char *program, int steps) {
    int a = threadIdx.x, b = blockIdx.x + 1;
    for (int pc = 0; pc < steps; pc++) {
        switch (program[(pc + threadIdx.x) % steps]) {
        case 0: a += b; break;
        case 1: b = a * 3 - b; break;
        case 2: a ^= b << 2; break;
        case 3: b = ~b; break;
        case 4: a = a > b ? a : b; break;
        case 5: b = b >> 1; break;
        case 6: { int t = a; a = b; b = t; break; }
        case 7: a -= 17; break;
        case 8: b += pc; break;
        default: a = -a;
        }
    }
    out[(blockIdx.x * blockDim.x + threadIdx.x) * 2] = a;
    out[(blockIdx.x * blockDim.x + threadIdx.x) * 2 + 1] = b;
}

extern "C" __global__ void insertion_sort(short *out, const short *in, int n) {
    short local[24];
    for (int i = 0; i < n; i++) {
        short x = in[threadIdx.x * n + i];
        int j = i;
        for (; j > 0 && local[j - 1] > x; j--) local[j] = local[j - 1];
        local[j] = x;
    }
    for (int i = 0; i < n; i++) out[threadIdx.x * n + i] = local[i];
}

struct Parameters {
    float scale;
    unsigned char shift;
    long long offset;
    int table[5];
};

extern "C" __global__ void by_value(long long *out, const Parameters p) {
    out[threadIdx.x] = (long long)(p.scale * p.table[threadIdx.x % 5]) + (p.offset >> p.shift);
}
