// Attention by blocks (Dao 2023, https://arxiv.org/abs/2307.08691): scores are made, weighed and forgotten in registers.
//
// A block of four warps owns BLOCK queries, or keys, 16 for each warp, and goes through all blocks of the others. D and E are the
// widths of q, k and of v, filled up with zeros; VEC says that rows lie at multiples of 16 bytes. `seen` says of every block of
// queries and keys what the bias is: 0 it hides all, and can be passed over; 1 anything; 2 zero. Without a bias it is null.
// Of each query `top` is the largest score and `share` 1 / Σ exp(score − top); where top <= hidden it sees no key, weighs all
// alike, and no gradient goes to its scores. Sums are in one order always.
#define BLOCK 64
#define THREADS 128
#define NONE (-__int_as_float(0x7f800000))
#define AT(x) long long x##b, long long x##h, long long x##t  // strides of rows of the batch, heads, tokens
#if PRODUCTS == 3
#define EXP expf
#else
#define EXP __expf
#endif

// rows of a warp's sums, times `by`, to where they are kept
template <int WIDTH>
__device__ __forceinline__ void keep(const float (&c)[WIDTH / 8][4], float* to, long long step, int first, int rows, int width, float by0, float by1) {
    const int row = first + 16 * WARP + (LANE >> 2), col = 2 * (LANE & 3);
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *at = to + (row + 8 * i) * step + 8 * j + col, by = i ? by1 : by0;
            if (row + 8 * i >= rows || 8 * j + col >= width) continue;
#if VEC
            *(float2*)at = make_float2(c[j][2 * i] * by, c[j][2 * i + 1] * by);
#else
            at[0] = c[j][2 * i] * by;
            if (8 * j + col + 1 < width) at[1] = c[j][2 * i + 1] * by;
#endif
        }
}
struct Bias {  // of one head; q, k: strides
    const float* at;
    long long q, k;
    const unsigned char* seen;
    int blocks;  // of keys
    __device__ __forceinline__ int kind(int query, int key) const { return at ? seen[(long long)(query / BLOCK) * blocks + key / BLOCK] : 2; }
};
__device__ __forceinline__ Bias bias_of(const float* bias, const unsigned char* seen, int row, int head, int t, int s, long long b, long long h, long long q, long long k,
                                        int heads) {
    Bias x{bias, q, k, seen, (s + BLOCK - 1) / BLOCK};
    if (bias) {
        x.at += row * b + head * h;
        x.seen += (long long)((b ? row : 0) * (h ? heads : 1) + (h ? head : 0)) * ((t + BLOCK - 1) / BLOCK) * x.blocks;
    }
    return x;
}

// scores: scale p + bias, of the lane's rows `row` and row + 8 and of columns from `col` on; of these there are so many
template <int N>
__device__ __forceinline__ void scored(float (&p)[N / 8][4], float scale, int kind, const float* bias, int row, int rows, long long rowstep, int col, int cols, long long colstep) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) p[n][i] *= scale;
    if (kind != 1) return;
    bias += row * rowstep + col * colstep;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++)
            if (row + 8 * (i >> 1) < rows && col + 8 * n + (i & 1) < cols) p[n][i] += bias[8 * (i >> 1) * rowstep + (8 * n + (i & 1)) * colstep];
}

// a block for each head of a bias and each block of queries; blocks of keys are counted in shared memory
#define SEERS 1024
extern "C" __global__ void __launch_bounds__(SEERS) attention_seen(const float* bias, unsigned char* seen, int heads, int t, int s, float hidden, long long b, long long h, long long q, long long k) {
    extern __shared__ int found[];  // of every block of keys: 1 some are seen, 2 some bias is not zero
    __shared__ int blind;
    int blocks = (s + BLOCK - 1) / BLOCK, first = blockIdx.y * BLOCK, rows = q ? min(BLOCK, t - first) : 1;
    bias += (blockIdx.x / heads) * b + (blockIdx.x % heads) * h + first * q;
    for (int i = threadIdx.x; i < blocks; i += SEERS) found[i] = 0;
    if (!threadIdx.x) blind = 0;
    __syncthreads();
    for (int row = WARP; row < rows; row += SEERS / 32) {
        bool sees = false;
#pragma unroll 4
        for (int i = 0; i < blocks; i++) {
            int key = i * BLOCK + LANE;
            float x = key < s ? bias[row * q + key * k] : NONE, y = key + 32 < s ? bias[row * q + (key + 32) * k] : NONE;
            bool seen1 = __any_sync(0xffffffffu, !(x <= hidden && y <= hidden));
            bool other = __any_sync(0xffffffffu, (key < s && x != 0) || (key + 32 < s && y != 0));
            sees |= seen1;
            if (!LANE && (seen1 || other)) atomicOr(found + i, seen1 + 2 * other);
        }
        if (!LANE && !sees) atomicOr(&blind, 1);
    }
    __syncthreads();
    seen += ((long long)blockIdx.x * gridDim.y + blockIdx.y) * blocks;
    for (int i = threadIdx.x; i < blocks; i += SEERS) seen[i] = !(found[i] & 1) && !blind ? 0 : found[i] & 2 ? 1 : 2;
}

// a block for each head and each block of queries, the last first
extern "C" __global__ void __launch_bounds__(THREADS)
attention_forward(const float* q, const float* k, const float* v, const float* bias, const unsigned char* seen, float* o, float* top, float* share, int heads, int shared, int t,
                  int s, int d, int e, float scale, AT(q), AT(k), AT(v), AT(o), AT(bias), long long biask) {
    extern __shared__ float memory[];
    float *Q = memory, *K = Q + BLOCK * APART(D), *V = K + BLOCK * APART(D);
    const int row = blockIdx.x / heads, head = blockIdx.x % heads, first = (gridDim.y - 1 - blockIdx.y) * BLOCK;
    const int mine = first + 16 * WARP + (LANE >> 2), c2 = 2 * (LANE & 3);
    Bias add = bias_of(bias, seen, row, head, t, s, biasb, biash, biast, biask, heads);
    k += row * kb + head / shared * kh;
    v += row * vb + head / shared * vh;
    fetch<BLOCK, D, THREADS>(Q, q + row * qb + head * qh, qt, first, t, d);
    arrived<0>();
    settle<BLOCK, D, THREADS>(Q);
    float out[E / 8][4] = {}, most[2] = {NONE, NONE}, total[2] = {};
    for (int at = 0; at < s; at += BLOCK) {
        int kind = add.kind(first, at);
        if (!kind) continue;
        __syncthreads();
        fetch<BLOCK, D, THREADS>(K, k, kt, at, s, d);
        fetch<BLOCK, E, THREADS>(V, v, vt, at, s, e);
        arrived<1>();
        settle<BLOCK, D, THREADS>(K);
        __syncthreads();
        float p[BLOCK / 8][4];
        across<BLOCK, D>(p, Q + 16 * WARP * APART(D), K);
        scored<BLOCK>(p, scale, kind, add.at, mine, t, add.q, at + c2, s, add.k);
        if (at + BLOCK > s)
#pragma unroll
            for (int n = 0; n < BLOCK / 8; n++)
                for (int i = 0; i < 4; i++)
                    if (at + 8 * n + c2 + (i & 1) >= s) p[n][i] = NONE;
        float high[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++)
            for (int i = 0; i < 4; i++) high[i >> 1] = fmaxf(high[i >> 1], p[n][i]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            for (int far = 1; far < 4; far *= 2) high[i] = fmaxf(high[i], __shfl_xor_sync(0xffffffffu, high[i], far));
            float less = EXP(most[i] - (high[i] == NONE ? 0 : high[i]));  // what was added up so far was measured by another top
            most[i] = high[i];
            if (high[i] == NONE) high[i] = 0;
            total[i] *= less;
#pragma unroll
            for (int j = 0; j < E / 8; j++) out[j][2 * i] *= less, out[j][2 * i + 1] *= less;
        }
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++)
            for (int i = 0; i < 4; i++) total[i >> 1] += p[n][i] = EXP(p[n][i] - high[i >> 1]);
        arrived<0>();
        settle<BLOCK, E, THREADS>(V);
        __syncthreads();
        along<BLOCK, E>(out, p, V);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        for (int far = 1; far < 4; far *= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], far);
        total[i] = 1 / total[i];
        int query = mine + 8 * i;
        if (!(LANE & 3) && query < t) {
            top[(long long)blockIdx.x * t + query] = most[i];
            share[(long long)blockIdx.x * t + query] = total[i];
        }
    }
    keep<E>(out, o + row * ob + head * oh, ot, first, t, e, total[0], total[1]);
}

// The rows are keys, or queries; the columns, in blocks of COLUMNS, are the others. x: k or q; y: v or g.
#define COLUMNS ((D > E ? D : E) > 64 ? 32 : BLOCK)
extern "C" __global__ void __launch_bounds__(THREADS)
attention_queries(const float* q, const float* k, const float* v, const float* bias, const unsigned char* seen, const float* o, const float* g, const float* top, const float* share,
                  float* delta, float* gq, int heads, int shared, int t, int s, int d, int e, float scale, float hidden, AT(q), AT(k), AT(v), AT(o), AT(g), AT(gq), AT(bias),
                  long long biask) {
    extern __shared__ float memory[];
    float *Q = memory, *G = Q + BLOCK * APART(D), *K = G + BLOCK * APART(E), *V = K + COLUMNS * APART(D);
    const int row = blockIdx.x / heads, head = blockIdx.x % heads, first = (gridDim.y - 1 - blockIdx.y) * BLOCK;
    const int mine = first + 16 * WARP + (LANE >> 2), c2 = 2 * (LANE & 3);
    Bias add = bias_of(bias, seen, row, head, t, s, biasb, biash, biast, biask, heads);
    k += row * kb + head / shared * kh;
    v += row * vb + head / shared * vh;
    o += row * ob + head * oh;
    fetch<BLOCK, D, THREADS>(Q, q + row * qb + head * qh, qt, first, t, d);
    fetch<BLOCK, E, THREADS>(G, g + row * gb + head * gh, gt, first, t, e);
    arrived<0>();
    settle<BLOCK, D, THREADS>(Q);
    settle<BLOCK, E, THREADS>(G);
    __syncthreads();
    float of[2], its[2], sum[2] = {};  // of the lane's two queries: the top, the share, Σ g o
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int query = mine + 8 * i;
        const bool there = query < t;
        const float *gs = G + (query - first) * APART(E), *os = o + (there ? query : 0) * ot;
#if VEC
#pragma unroll
        for (int j = 2 * c2; j < E; j += 16)
            if (there && j < e) {
                float4 x = *(const float4*)(gs + j), y = *(const float4*)(os + j);
                sum[i] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
#else
        for (int j = c2 / 2; j < (there ? e : 0); j += 4) sum[i] += gs[j] * os[j];
#endif
        for (int far = 1; far < 4; far *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], far);
        const long long at = (long long)blockIdx.x * t + query;
        if (there && !c2) delta[at] = sum[i];
        of[i] = there ? top[at] : 0;
        its[i] = there && !(of[i] <= hidden) ? share[at] : 0;
    }
    float out[D / 8][4] = {};
    for (int at = 0; at < s; at += COLUMNS) {
        int kind = add.kind(first, at);
        if (!kind) continue;
        __syncthreads();
        fetch<COLUMNS, D, THREADS>(K, k, kt, at, s, d);
        fetch<COLUMNS, E, THREADS>(V, v, vt, at, s, e);
        arrived<1>();
        settle<COLUMNS, D, THREADS>(K);
        __syncthreads();
        float p[COLUMNS / 8][4], gp[COLUMNS / 8][4];
        across<COLUMNS, D>(p, Q + 16 * WARP * APART(D), K);
        scored<COLUMNS>(p, scale, kind, add.at, mine, t, add.q, at + c2, s, add.k);
        arrived<0>();
        settle<COLUMNS, E, THREADS>(V);
        __syncthreads();
        across<COLUMNS, E>(gp, G + 16 * WARP * APART(E), V);
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
            for (int i = 0; i < 4; i++) p[n][i] = EXP(p[n][i] - of[i >> 1]) * its[i >> 1] * (gp[n][i] - sum[i >> 1]);
        if (at + COLUMNS > s)
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                for (int i = 0; i < 4; i++)
                    if (at + 8 * n + c2 + (i & 1) >= s) p[n][i] = 0;
        along<COLUMNS, D>(out, p, K);
    }
    keep<D>(out, gq + row * gqb + head * gqh, gqt, first, t, d, scale, scale);
}

// a block for each head of keys and each block of keys
extern "C" __global__ void __launch_bounds__(THREADS)
attention_keys(const float* q, const float* k, const float* v, const float* bias, const unsigned char* seen, const float* g, const float* top, const float* share,
               const float* delta, float* gk, float* gv, int heads, int shared, int t, int s, int d, int e, float scale, float hidden, AT(q), AT(k), AT(v), AT(g), AT(gk), AT(gv),
               AT(bias), long long biask) {
    extern __shared__ float memory[];
    float *K = memory, *V = K + BLOCK * APART(D), *Q = V + BLOCK * APART(E), *G = Q + COLUMNS * APART(D);
    float *of = G + COLUMNS * APART(E), *its = of + COLUMNS, *sum = its + COLUMNS;
    const int groups = heads / shared, row = blockIdx.x / groups, group = blockIdx.x % groups, first = blockIdx.y * BLOCK;
    const int mine = first + 16 * WARP + (LANE >> 2), c2 = 2 * (LANE & 3);
    fetch<BLOCK, D, THREADS>(K, k + row * kb + group * kh, kt, first, s, d);
    fetch<BLOCK, E, THREADS>(V, v + row * vb + group * vh, vt, first, s, e);
    arrived<0>();
    settle<BLOCK, D, THREADS>(K);
    settle<BLOCK, E, THREADS>(V);
    float outk[D / 8][4] = {}, outv[E / 8][4] = {};
    for (int head = group * shared; head < (group + 1) * shared; head++) {
        Bias add = bias_of(bias, seen, row, head, t, s, biasb, biash, biast, biask, heads);
        const float *qs = q + row * qb + head * qh, *gs = g + row * gb + head * gh;
        for (int at = 0; at < t; at += COLUMNS) {
            int kind = add.kind(at, first);
            if (!kind) continue;
            __syncthreads();
            fetch<COLUMNS, D, THREADS>(Q, qs, qt, at, t, d);
            fetch<COLUMNS, E, THREADS>(G, gs, gt, at, t, e);
            for (int i = threadIdx.x; i < COLUMNS; i += THREADS) {
                long long from = ((long long)row * heads + head) * t + at + i;
                bool there = at + i < t;
                of[i] = there ? top[from] : 0;
                its[i] = there ? share[from] : 0;
                sum[i] = there ? delta[from] : 0;
            }
            arrived<1>();
            settle<COLUMNS, D, THREADS>(Q);
            __syncthreads();
            float p[COLUMNS / 8][4], gp[COLUMNS / 8][4];
            across<COLUMNS, D>(p, K + 16 * WARP * APART(D), Q);
            scored<COLUMNS>(p, scale, kind, add.at, mine, s, add.k, at + c2, t, add.q);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                for (int i = 0; i < 4; i++) p[n][i] = EXP(p[n][i] - of[8 * n + c2 + (i & 1)]) * its[8 * n + c2 + (i & 1)];
            arrived<0>();
            settle<COLUMNS, E, THREADS>(G);
            __syncthreads();
            along<COLUMNS, E>(outv, p, G);
            across<COLUMNS, E>(gp, V + 16 * WARP * APART(E), G);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                for (int i = 0; i < 4; i++) p[n][i] *= of[8 * n + c2 + (i & 1)] <= hidden ? 0 : gp[n][i] - sum[8 * n + c2 + (i & 1)];
            along<COLUMNS, D>(outk, p, Q);
        }
    }
    keep<D>(outk, gk + row * gkb + group * gkh, gkt, first, s, d, scale, scale);
    keep<E>(outv, gv + row * gvb + group * gvh, gvt, first, s, e, 1, 1);
}
