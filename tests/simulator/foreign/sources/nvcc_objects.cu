// What C++ brings: virtual functions, tables of function pointers, lambdas, variadic templates, bit fields, alloca-free stacks.
// target: sm_80
#include <cuda/std/array>
#include <cuda/std/complex>
#include <cuda/std/optional>
#include <cuda/std/tuple>

struct Shape {
    __device__ virtual float area() const = 0;
    __device__ virtual float scaled(float by) const { return area() * by * by; }
};
struct Circle : Shape {
    float radius;
    __device__ Circle(float r) : radius(r) {}
    __device__ float area() const override { return 3.25f * radius * radius; }
};
struct Box : Shape {
    float width, height;
    __device__ Box(float w, float h) : width(w), height(h) {}
    __device__ float area() const override { return width * height; }
    __device__ float scaled(float by) const override { return Shape::scaled(by) + 1; }
};

extern "C" __global__ void shapes(float *out, const float *size, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Circle circle(size[i]);
    Box box(size[i], 2 * size[i]);
    Shape *which[2] = {&circle, &box};
    out[i] = which[(int)(size[i] * 4) % 2]->scaled(2);
}

typedef int (*Operation)(int, int);
__device__ int add(int a, int b) { return a + b; }
__device__ int subtract(int a, int b) { return a - b; }
__device__ int multiply(int a, int b) { return a * b; }
__device__ int larger(int a, int b) { return a > b ? a : b; }
__device__ Operation operations[4] = {add, subtract, multiply, larger};

extern "C" __global__ void table(int *out, const int *a, const int *b, const unsigned char *which, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = operations[which[i] % 4](a[i], b[i]);
}

template <typename... F>
__device__ float chain(float x, F... f) {
    ((x = f(x)), ...);
    return x;
}

extern "C" __global__ void lambdas(float *out, const float *in, float factor, int n) {
    int i = threadIdx.x;
    auto scale = [factor](float x) { return x * factor; };
    auto shift = [=](float x) { return x + i; };
    if (i < n) out[i] = chain(in[i], scale, shift, [&](float x) { return x > n ? scale(x) : -x; }, scale);
}

struct Packed {
    unsigned low : 3, middle : 11, high : 18;
    signed delta : 7;
};

extern "C" __global__ void fields(Packed *p, int *sum, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    Packed x = p[i];
    x.middle = x.low * x.high + 5;
    x.delta = x.delta - 1;
    sum[i] = x.low + x.middle + x.high + x.delta;
    p[i] = x;
}

extern "C" __global__ void machine(int *out, const unsigned char *program, const int *input, int steps) {
    // A stack machine whose stack is a local array, with a switch that is dense enough for a table of jumps.
    int stack[16], top = 0, i = threadIdx.x;
    stack[top] = input[i];
    for (int at = 0; at < steps; at++) {
        switch (program[(i & 3) * steps + at]) {
        case 0: stack[top + 1] = stack[top], top++; break;
        case 1: stack[top] = -stack[top]; break;
        case 2: if (top) stack[top - 1] += stack[top], top--; break;
        case 3: if (top) stack[top - 1] *= stack[top], top--; break;
        case 4: stack[top] ^= 0x55; break;
        case 5: if (top) { int x = stack[top]; stack[top] = stack[top - 1]; stack[top - 1] = x; } break;
        case 6: stack[top] = stack[top] >> 1; break;
        case 7: stack[top] = stack[top] * 3 + 1; break;
        case 8: stack[top + 1] = i, top++; break;
        case 9: if (stack[top] < 0) at++; break;
        }
        if (top > 13) top = 13;
    }
    int sum = 0;
    while (top >= 0) sum = sum * 31 + stack[top--];
    out[i] = sum;
}

__device__ cuda::std::optional<int> root(int x) {
    for (int i = 0; i * i <= x; i++)
        if (i * i == x) return i;
    return cuda::std::nullopt;
}

extern "C" __global__ void library(float2 *z, int *roots, const float2 *in) {
    int i = threadIdx.x;
    cuda::std::complex<float> c(in[i].x, in[i].y);
    cuda::std::array<cuda::std::complex<float>, 3> powers{c, c * c, c * c * c};
    cuda::std::complex<float> sum = 0;
    for (auto p : powers) sum += p;
    auto [re, im] = cuda::std::make_tuple(sum.real(), sum.imag());
    z[i] = make_float2(re, im);
    roots[i] = root(i).value_or(-1);
}

struct Node {
    int key, left, right;
};

__device__ int depth(const Node *nodes, int at) {
    if (at < 0) return 0;
    int left = depth(nodes, nodes[at].left), right = depth(nodes, nodes[at].right);
    return 1 + (left > right ? left : right);
}

__device__ void sort(int *x, int low, int high) {
    if (low >= high) return;
    int pivot = x[(low + high) / 2], i = low, j = high;
    while (i <= j) {
        while (x[i] < pivot) i++;
        while (x[j] > pivot) j--;
        if (i <= j) {
            int y = x[i];
            x[i++] = x[j];
            x[j--] = y;
        }
    }
    sort(x, low, j);
    sort(x, i, high);
}

extern "C" __global__ void trees(int *depths, int *values, const Node *nodes, const int *roots, int n) {
    depths[threadIdx.x] = depth(nodes, roots[threadIdx.x]);
    sort(values + threadIdx.x * n, 0, n - 1);
}
