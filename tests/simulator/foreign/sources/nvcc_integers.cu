// Integer arithmetic: 64 and 128 bits, bit counting, byte permutation, dot products of bytes, SIMD within a register.
// target: sm_80

extern "C" __global__ void wide(unsigned long long *out, const unsigned long long *a, const unsigned long long *b, int n) {
    int i = threadIdx.x;
    unsigned long long x = a[i], y = b[i];
    long long sx = x, sy = y;
    out[0 * n + i] = x * y;
    out[1 * n + i] = __umul64hi(x, y);
    out[2 * n + i] = __mul64hi(sx, sy);
    out[3 * n + i] = x / y;
    out[4 * n + i] = x % y;
    out[5 * n + i] = sx / (sy >> 20);
    out[6 * n + i] = sx % ((sy >> 40) | 1);
    out[7 * n + i] = __popcll(x) * 10000 + __clzll(y >> (i % 64)) * 100 + __ffsll(x << (i % 64));
    out[8 * n + i] = __brevll(x) ^ (x >> (y & 63)) ^ (sx >> (x & 63));
    unsigned __int128 product = (unsigned __int128)x * y + ((unsigned __int128)y << 64) - x;
    out[9 * n + i] = product >> 64;
    out[10 * n + i] = product;
    out[11 * n + i] = (unsigned long long)((unsigned __int128)x * 1000003u >> 17);
}

extern "C" __global__ void narrow(unsigned *out, const unsigned *a, const unsigned *b, const unsigned *c, int n) {
    int i = threadIdx.x;
    unsigned x = a[i], y = b[i], z = c[i];
    int sx = x, sy = y, sz = z;
    out[0 * n + i] = __popc(x) + __clz(y) * 64 + __ffs(z) * 4096;
    out[1 * n + i] = __brev(x);
    out[2 * n + i] = __byte_perm(x, y, z & 0x7777);
    out[3 * n + i] = __funnelshift_l(x, y, z);
    out[4 * n + i] = __funnelshift_rc(x, y, z % 40);
    out[5 * n + i] = __dp4a(sx, sy, sz);
    out[6 * n + i] = __dp4a(x, y, z);
    out[7 * n + i] = __dp2a_lo(sx, sy, sz) + __dp2a_hi(x, y, z);
    out[8 * n + i] = __umulhi(x, y) ^ __mulhi(sx, sy);
    out[9 * n + i] = __usad(x, y, z) ^ __sad(sx >> 2, sy >> 2, z);
    out[10 * n + i] = __vadd4(x, y);
    out[11 * n + i] = __vabsdiffu4(x, y);
    out[12 * n + i] = __vmaxs2(x, y) ^ __vminu4(y, z);
    out[13 * n + i] = sx / (sy | 1) + sx % ((sz >> 8) | 1);
    out[14 * n + i] = x / 7 + y % 1000 + (unsigned)(sx / -13);
    out[15 * n + i] = __uhadd(x, y) ^ __mul24(sx, sy) ^ __umul24(y, z);
    out[16 * n + i] = (x & y) | (~x & z);
    out[17 * n + i] = min(sx, sy) ^ max(y, z) ^ abs(sz >> 1);
    out[18 * n + i] = __vcmpgtu4(x, y) ^ __vsetltu2(y, z);
    out[19 * n + i] = __viaddmax_s32(sx >> 1, sy >> 1, sz) ^ __vimax3_u32(x, y, z);
}

extern "C" __global__ void small(short *out, const signed char *a, const unsigned short *b, int n) {
    int i = threadIdx.x;
    signed char x = a[i];
    unsigned short y = b[i];
    out[0 * n + i] = x * y;
    out[1 * n + i] = (unsigned char)(x + y);
    out[2 * n + i] = (signed char)y >> 2;
    out[3 * n + i] = y / (x == 0 ? 3 : x);
    out[4 * n + i] = x < (short)y ? x : y;
    out[5 * n + i] = (short)(y << 3) >> 4;
}

extern "C" __global__ void primes(unsigned *count, unsigned limit) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x + 2;
    bool prime = i < limit;
    for (unsigned d = 2; prime && d * d <= i; d++) prime = i % d != 0;
    if (prime) atomicAdd(count, 1u);
}
