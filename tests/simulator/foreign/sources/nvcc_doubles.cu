// Templates over float and double: matrix times vector, a Jacobi stencil, a Mandelbrot set, elementary functions.
// target: sm_80

template <typename T, int ROWS>
__device__ void matrix_vector(T *out, const T *matrix, const T *vector, int columns) {
    T acc[ROWS] = {};
    for (int j = threadIdx.x; j < columns; j += 32)
#pragma unroll
        for (int r = 0; r < ROWS; r++) acc[r] += matrix[(blockIdx.x * ROWS + r) * columns + j] * vector[j];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        for (int step = 16; step > 0; step /= 2) acc[r] += __shfl_xor_sync(0xffffffffu, acc[r], step);
        if (threadIdx.x == r) out[blockIdx.x * ROWS + r] = acc[r];
    }
}

extern "C" __global__ void matrix_vector_double(double *out, const double *m, const double *v, int columns) {
    matrix_vector<double, 4>(out, m, v, columns);
}

extern "C" __global__ void matrix_vector_float(float *out, const float *m, const float *v, int columns) {
    matrix_vector<float, 3>(out, m, v, columns);
}

extern "C" __global__ void jacobi(double *out, const double *in, int width, int height) {
    __shared__ double tile[10][18];
    int x = blockIdx.x * 16 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
    auto at = [&](int i, int j) { return i >= 0 && i < width && j >= 0 && j < height ? in[j * width + i] : 0.0; };
    tile[threadIdx.y + 1][threadIdx.x + 1] = at(x, y);
    if (threadIdx.x == 0) tile[threadIdx.y + 1][0] = at(x - 1, y);
    if (threadIdx.x == 15) tile[threadIdx.y + 1][17] = at(x + 1, y);
    if (threadIdx.y == 0) tile[0][threadIdx.x + 1] = at(x, y - 1);
    if (threadIdx.y == 7) tile[9][threadIdx.x + 1] = at(x, y + 1);
    __syncthreads();
    if (x < width && y < height)
        out[y * width + x] = 0.25 * (tile[threadIdx.y][threadIdx.x + 1] + tile[threadIdx.y + 2][threadIdx.x + 1] +
                                     tile[threadIdx.y + 1][threadIdx.x] + tile[threadIdx.y + 1][threadIdx.x + 2]);
}

extern "C" __global__ void mandelbrot(int *out, double left, double top, double step, int limit) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y;
    double cx = left + i * step, cy = top - j * step, x = 0, y = 0;
    int n = 0;
    while (n < limit && x * x + y * y <= 4.0) {
        double t = __dadd_rn(__dsub_rn(__dmul_rn(x, x), __dmul_rn(y, y)), cx);
        y = __dadd_rn(__dmul_rn(__dmul_rn(2.0, x), y), cy);
        x = t;
        n++;
    }
    out[j * gridDim.x * blockDim.x + i] = n;
}

template <typename T>
__device__ void functions(T *out, const T *in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    T x = in[i];
    out[0 * n + i] = exp(x);
    out[1 * n + i] = log(x);
    out[2 * n + i] = sin(x);
    out[3 * n + i] = cos(x * T(1.0e6));
    out[4 * n + i] = tanh(x);
    out[5 * n + i] = erf(x);
    out[6 * n + i] = pow(x, T(2.7));
    out[7 * n + i] = sqrt(x);
    out[8 * n + i] = T(1) / x;
    out[9 * n + i] = cbrt(x);
    out[10 * n + i] = atan(x);
    out[11 * n + i] = fmod(x, T(0.37));
    out[12 * n + i] = rsqrt(x);
    out[13 * n + i] = asin(x / T(4));
    out[14 * n + i] = log1p(x);
    out[15 * n + i] = rint(x * T(10)) + floor(x * T(7)) + trunc(-x * T(5));
}

extern "C" __global__ void functions_double(double *out, const double *in, int n) { functions(out, in, n); }
extern "C" __global__ void functions_float(float *out, const float *in, int n) { functions(out, in, n); }

extern "C" __global__ void conversions(double *out, const double *in, int n) {
    int i = threadIdx.x;
    double x = in[i];
    out[0 * n + i] = static_cast<float>(x);
    out[1 * n + i] = static_cast<int>(x);
    out[2 * n + i] = static_cast<unsigned long long>(x < 0 ? -x : x);
    out[3 * n + i] = __double2float_ru(x);
    out[4 * n + i] = __double2ll_rd(x);
    out[5 * n + i] = __double2hiint(x);
    out[6 * n + i] = __dadd_rz(x, 0.1);
    out[7 * n + i] = __ddiv_ru(x, 3.0);
    out[8 * n + i] = __float2int_rn(static_cast<float>(x)) + __fmul_rd(static_cast<float>(x), 0.3f);
    out[9 * n + i] = fmin(x, 0.5) + fmax(x, -0.5) + copysign(2.0, x) + fabs(x);
}
