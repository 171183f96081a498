// Sums of products of tiles, out of shared memory, whose rows are APART(WIDTH) numbers apart: no two lanes meet in a bank.
//
// With PRODUCTS == 1 factors are rounded to TensorFloat-32, those in shared memory once, by `settle`. With PRODUCTS == 3 each is cut
// in two such parts, three products are added up, the small ones first, and the sum is added as float32 is: exact to float32 but for
// the order of sums.
#define APART(width) ((width) + 4)

template <int N> struct Factor {  // N numbers of a lane, as tensor cores take them
    unsigned big[N];
#if PRODUCTS == 3
    unsigned small[N];
#endif
    __device__ __forceinline__ void set(int i, float x) {
#if PRODUCTS == 3
        big[i] = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;  // what is no number stays none in the small part
        small[i] = __float_as_uint(x - __uint_as_float(big[i]));
#else
        big[i] = rounded(x);
#endif
    }
    __device__ __forceinline__ void settled(int i, unsigned x) {  // out of shared memory
#if PRODUCTS == 3
        set(i, __uint_as_float(x));
#else
        big[i] = x;
#endif
    }
};
__device__ __forceinline__ void multiply(float* c, const Factor<4>& a, const Factor<2>& b) {
#if PRODUCTS == 3
    float sum[4] = {};
    multiply(sum, a.small, b.big);
    multiply(sum, a.big, b.small);
    multiply(sum, a.big, b.big);
    for (int i = 0; i < 4; i++) c[i] += sum[i];
#else
    multiply(c, a.big, b.big);
#endif
}

// a tile to shared memory, zeros where there are no such rows or columns
template <int ROWS, int WIDTH, int THREADS>
__device__ __forceinline__ void fetch(float* to, const float* from, long long step, int first, int rows, int width) {
    const int row = threadIdx.x / (WIDTH / 4), col = 4 * (threadIdx.x % (WIDTH / 4)), apart = THREADS / (WIDTH / 4);
    const float* at = from + (first + row) * step + col;
    to += row * APART(WIDTH) + col;
#pragma unroll
    for (int i = row; i < row + ROWS; i += apart) {
        if (apart > ROWS && i >= ROWS) break;
        bool there = first + i < rows;
#if VEC
        there = there && col < width;
        copy16(to, there ? at : from, there);
#else
        for (int e = 0; e < 4; e++) copy4(to + e, there && col + e < width ? at + e : from, there && col + e < width);
#endif
        to += apart * APART(WIDTH);
        at += apart * step;
    }
    copies_end();
}
// each thread rounds what it has copied
template <int ROWS, int WIDTH, int THREADS> __device__ __forceinline__ void settle(float* tile) {
#if PRODUCTS == 1
    const int row = threadIdx.x / (WIDTH / 4), apart = THREADS / (WIDTH / 4);
    float4* at = (float4*)(tile + row * APART(WIDTH) + 4 * (threadIdx.x % (WIDTH / 4)));
#pragma unroll
    for (int i = row; i < row + ROWS; i += apart) {
        if (apart > ROWS && i >= ROWS) break;
        float4 x = *at;
        *at = make_float4(__uint_as_float(rounded(x.x)), __uint_as_float(rounded(x.y)), __uint_as_float(rounded(x.z)), __uint_as_float(rounded(x.w)));
        at += apart * APART(WIDTH) / 4;
    }
#endif
}

// c = x yᵀ for 16 rows of x and N rows of y
template <int N, int WIDTH> __device__ __forceinline__ void across(float (&c)[N / 8][4], const float* x, const float* y) {
    const int step = APART(WIDTH), tile = LANE >> 3, row = LANE & 7;
#pragma unroll
    for (int n = 0; n < N / 8; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
    x += (row + 8 * (tile & 1)) * step + 4 * (tile >> 1);
    y += (row + 8 * (tile >> 1)) * step + 4 * (tile & 1);
#pragma unroll 2
    for (int k = 0; k < WIDTH; k += 8) {
        unsigned t[4];
        Factor<4> a;
        load_tiles(t, x + k);
        for (int i = 0; i < 4; i++) a.settled(i, t[i]);
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            Factor<2> b[2];
            load_tiles(t, y + 8 * n * step + k);
            for (int i = 0; i < 4; i++) b[i >> 1].settled(i & 1, t[i]);
            multiply(c[n], a, b[0]);
            multiply(c[n + 1], a, b[1]);
        }
    }
}
// c += p y for p (16, N) as `across` left it and N rows of y: which column of p is which of the tensor core's is free to choose
template <int N, int WIDTH> __device__ __forceinline__ void along(float (&c)[WIDTH / 8][4], const float (&p)[N / 8][4], const float* y) {
    const int step = APART(WIDTH);
    y += 2 * (LANE & 3) * step + (LANE >> 2);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        Factor<4> a;
        a.set(0, p[n][0]), a.set(1, p[n][2]), a.set(2, p[n][1]), a.set(3, p[n][3]);
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++) {
            Factor<2> b;
            b.settled(0, __float_as_uint(y[8 * n * step + 8 * j]));
            b.settled(1, __float_as_uint(y[(8 * n + 1) * step + 8 * j]));
            multiply(c[j], a, b);
        }
    }
}
