// What a change of low rank adds to a linear, and its gradients: products of which one side is RANK wide at most, a multiple of 8.
//
// Each goes once over the wide matrix, which is all that they wait for: a tile of 16 x 8 is multiplied where it is loaded, in registers.
// A lane loads 4 numbers that lie together; which of them are which of the tensor core's is free to choose. VEC says that rows
// lie at multiples of 16 bytes. RANKS is RANK / 8. Sums are in one order always.
//
// MADE is what a number of X is made of: x and y of its place, w and b of its column, m and s of its row; WITH_y, … those there are.
#define RANKS (RANK / 8)
#define WARPS 8

__device__ __forceinline__ void load4(float* to, const float* row, int col, int width) {  // zeros beyond the width
#if VEC
    float4 x = col < width ? *(const float4*)(row + col) : make_float4(0, 0, 0, 0);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
#else
    for (int i = 0; i < 4; i++) to[i] = col + i < width ? row[col + i] : 0;
#endif
}
__device__ __forceinline__ void store4(float* row, int col, int width, const float* from) {
#if VEC
    if (col < width) *(float4*)(row + col) = make_float4(from[0], from[1], from[2], from[3]);
#else
    for (int i = 0; i < 4; i++)
        if (col + i < width) row[col + i] = from[i];
#endif
}
// h (n, r) = alpha x Mᵀ for x (n, k) and M (r, k) at strides mr, mk: 16 rows a block, whose warps share k
extern "C" __global__ void __launch_bounds__(32 * WARPS)
lowrank_narrow(const float* x, long long step, const float* M, long long mr, long long mk, float* h, int n, int k, int r, float alpha) {
    __shared__ float parts[WARPS][16][RANK];
    const int first = 16 * blockIdx.x, top = first + (LANE >> 2), q = LANE & 3;
    const float *x0 = x + (top < n ? top : 0) * step, *x1 = x + (top + 8 < n ? top + 8 : 0) * step;
    float sum[RANKS][4] = {};
    const int EACH = RANKS > 2 ? 4 : 8;
    for (int at = 16 * WARP; at < k; at += 16 * WARPS * EACH) {
        float a[EACH][2][4];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int col = at + 16 * WARPS * i + 4 * q;
            load4(a[i][0], x0, col, k);
            load4(a[i][1], x1, col, k);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int col = at + 16 * WARPS * i + 4 * q;
            Factor<4> f[2];
#pragma unroll
            for (int j = 0; j < 2; j++)
                f[j].set(0, a[i][0][2 * j]), f[j].set(1, a[i][1][2 * j]), f[j].set(2, a[i][0][2 * j + 1]), f[j].set(3, a[i][1][2 * j + 1]);
#pragma unroll
            for (int i8 = 0; i8 < RANKS; i8++) {
                int rank = 8 * i8 + (LANE >> 2);
                float b[4];
                if (mk == 1) load4(b, M + rank * mr, col, rank < r ? k : 0);
                else
#pragma unroll
                    for (int j = 0; j < 4; j++) b[j] = rank < r && col + j < k ? M[rank * mr + (col + j) * mk] : 0;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    Factor<2> g;
                    g.set(0, b[2 * j]), g.set(1, b[2 * j + 1]);
                    multiply(sum[i8], f[j], g);
                }
            }
        }
    }
#pragma unroll
    for (int i8 = 0; i8 < RANKS; i8++)
        for (int e = 0; e < 4; e++) parts[WARP][(LANE >> 2) + 8 * (e >> 1)][8 * i8 + 2 * q + (e & 1)] = sum[i8][e];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * RANK; i += 32 * WARPS) {
        float total = 0;
        for (int w = 0; w < WARPS; w++) total += parts[w][i / RANK][i % RANK];
        if (first + i / RANK < n && i % RANK < r) h[(long long)(first + i / RANK) * r + i % RANK] = alpha * total;
    }
}

// z = y + h Mᵀ + b for h (n, r) and M (k, r) at strides mk, mr; y and b may be null, y may be z: 64 rows and 128 columns a block.
// There is too little to sum up here for tensor cores to gain anything.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)
lowrank_widen(const float* y, long long ystep, const float* h, const float* M, long long mk, long long mr, const float* b, float* z, long long zstep, int n, int k, int r) {
    __shared__ __align__(16) float hs[8 * WARPS][RANK], Ms[8][132];
    const int first = 8 * WARPS * blockIdx.x, from = 128 * blockIdx.y, col = from + 4 * LANE;
    for (int i = threadIdx.x; i < 8 * WARPS * RANK; i += 32 * WARPS) {
        int row = first + i / RANK, rank = i % RANK;
        hs[i / RANK][rank] = row < n && rank < r ? h[(long long)row * r + rank] : 0;
    }
    float c[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = first + 8 * WARP + i;
        float more[4] = {}, shift[4] = {};
        if (y && row < n) load4(more, y + row * ystep, col, k);
        if (b) load4(shift, b, col, k);
        for (int e = 0; e < 4; e++) c[i][e] = more[e] + shift[e];
    }
#pragma unroll 1
    for (int at = 0; at < r; at += 8) {
        __syncthreads();
        for (int i = threadIdx.x; i < 8 * 128; i += 32 * WARPS) {
            int c1 = mr == 1 ? i / 8 : i % 128, rank = mr == 1 ? i % 8 : i / 128;
            Ms[rank][c1] = from + c1 < k && at + rank < r ? M[(from + c1) * mk + (at + rank) * mr] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            float m[4][4];
#pragma unroll
            for (int j = 0; j < 4; j++) *(float4*)m[j] = *(const float4*)(Ms[half + j] + 4 * LANE);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float4 x = *(const float4*)(hs[8 * WARP + i] + at + half);
#pragma unroll
                for (int e = 0; e < 4; e++) c[i][e] += x.x * m[0][e] + x.y * m[1][e] + x.z * m[2][e] + x.w * m[3][e];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (first + 8 * WARP + i < n) store4(z + (first + 8 * WARP + i) * zstep, col, k, c[i]);
}

__device__ __forceinline__ void made4(float* to, const float* xs, long long step, const float* ys, const float* ws, const float* ms, const float* ss, const float* bs, int row, int col, int k) {
    float x4[4], y4[4] = {}, w4[4] = {}, b4[4] = {}, m = 0, s = 0;
    load4(x4, xs + row * step, col, k);
#ifdef WITH_y
    load4(y4, ys + row * step, col, k);
#endif
#ifdef WITH_w
    load4(w4, ws, col, k);
#endif
#ifdef WITH_b
    load4(b4, bs, col, k);
#endif
#ifdef WITH_m
    m = ms[row];
#endif
#ifdef WITH_s
    s = ss[row];
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x = x4[i], y = y4[i], w = w4[i], b = b4[i];
        to[i] = MADE;
    }
}
// each part of out (r, k) = hᵀ X at strides outr, outk, for h (n, r) and X (n, k): `rows` rows a part, 32 columns a warp
extern "C" __global__ void __launch_bounds__(32 * WARPS)
lowrank_gather(const float* h, const float* x, long long step, const float* y, const float* w, const float* m, const float* s, const float* b, float* out, int n, int k, int r,
               int rows, long long part, long long outr, long long outk) {
    const int q = LANE & 3, g = LANE >> 2, col = 32 * (WARPS * blockIdx.x + WARP) + 4 * g, end = min(n, rows * ((int)blockIdx.y + 1));
    float sum[2][RANKS][4] = {};
    const int EACH = 4;
    for (int at = rows * blockIdx.y; at < end; at += 8 * EACH) {
        float a[EACH][2][4], f[EACH][RANKS][2];
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int row = at + 8 * i + 4 * j + q;
                if (row < end) made4(a[i][j], x, step, y, w, m, s, b, row, col, k);
                else a[i][j][0] = a[i][j][1] = a[i][j][2] = a[i][j][3] = 0;
#pragma unroll
                for (int i8 = 0; i8 < RANKS; i8++) f[i][i8][j] = row < end && 8 * i8 + g < r ? h[(long long)row * r + 8 * i8 + g] : 0;
            }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            Factor<4> c[2];
#pragma unroll
            for (int t = 0; t < 2; t++) c[t].set(0, a[i][0][2 * t]), c[t].set(1, a[i][0][2 * t + 1]), c[t].set(2, a[i][1][2 * t]), c[t].set(3, a[i][1][2 * t + 1]);
#pragma unroll
            for (int i8 = 0; i8 < RANKS; i8++) {
                Factor<2> other;
                other.set(0, f[i][i8][0]), other.set(1, f[i][i8][1]);
#pragma unroll
                for (int t = 0; t < 2; t++) multiply(sum[t][i8], c[t], other);
            }
        }
    }
    out += blockIdx.y * part;
#pragma unroll
    for (int i8 = 0; i8 < RANKS; i8++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float four[4] = {sum[0][i8][e], sum[0][i8][2 + e], sum[1][i8][e], sum[1][i8][2 + e]};  // columns col, col + 1, …
            const int rank = 8 * i8 + 2 * q + e;
            if (rank >= r) continue;
            if (outk == 1) store4(out + rank * outr, col, k, four);
            else
                for (int i = 0; i < 4; i++)
                    if (col + i < k) out[rank * outr + (col + i) * outk] = four[i];
        }
}
#if RANK <= 16
// both in one pass, each in parts: h (n, r) = x M for M (k, r) and out (k, r) = xᵀ y for y (n, r), of x (n, k): 128 rows and `columns`
// columns a block, in pieces of 32 rows and 128 columns that are copied while others are multiplied
#define STAGES 4
extern "C" __global__ void __launch_bounds__(32 * WARPS)
lowrank_both(const float* x, long long step, const float* M, const float* y, float* h, float* out, int n, int k, int r, int columns) {
    extern __shared__ float memory[];
    __shared__ float ys[128][RANK];
    const int size = 32 * APART(128), q = LANE & 3, g = LANE >> 2, first = 128 * blockIdx.x, from = columns * blockIdx.y;
    const int pieces = 4 * ((min(columns, k - from) + 127) / 128), half = WARP & 1, quarter = WARP >> 1;
    for (int i = threadIdx.x; i < 128 * RANK; i += 32 * WARPS) {
        int row = first + i / RANK, rank = i % RANK;
        ys[i / RANK][rank] = row < n && rank < r ? y[(long long)row * r + rank] : 0;
    }
    auto copy = [&](int i) {
        int col = from + 128 * (i / 4);
        if (i < pieces) fetch<32, 128, 32 * WARPS>(memory + i % STAGES * size, x + col, step, first + 32 * (i % 4), n, k - col);
        else copies_end();
    };
    for (int i = 0; i < STAGES - 1; i++) copy(i);
    float sums[4][RANKS][4] = {};  // of 16 rows of each piece: rows 16 half, columns 32 quarter
    for (int at = 0; at < pieces; at += 4) {
        const int col = from + 32 * at, mine = col + 32 * quarter;
        Factor<2> m[RANKS][4];
#pragma unroll
        for (int i8 = 0; i8 < RANKS; i8++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int c = mine + 8 * j + q + 4 * i, rank = 8 * i8 + g;
                    m[i8][j].set(i, c < k && rank < r ? M[(long long)c * r + rank] : 0);
                }
        float turned[RANKS][4] = {};  // of 16 columns
#pragma unroll
        for (int piece = 0; piece < 4; piece++) {
            arrived<STAGES - 2>();
            __syncthreads();
            copy(at + piece + STAGES - 1);
            const float *tile = memory + piece * size, *row = tile + (16 * half + 8 * (LANE >> 3 & 1) + (LANE & 7)) * APART(128) + 32 * quarter + 4 * (LANE >> 4);
            const float* column = tile + q * APART(128) + 16 * WARP + g;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                unsigned t[4];
                Factor<4> a, b;
                load_tiles(t, row + 8 * j);
                for (int i = 0; i < 4; i++) a.settled(i, t[i]);
                for (int i = 0; i < 4; i++) b.set(i, column[(8 * j + 4 * (i >> 1)) * APART(128) + 8 * (i & 1)]);
#pragma unroll
                for (int i8 = 0; i8 < RANKS; i8++) {
                    Factor<2> f;
                    for (int i = 0; i < 2; i++) f.set(i, ys[32 * piece + 8 * j + q + 4 * i][8 * i8 + g]);
                    multiply(sums[piece][i8], a, m[i8][j]);
                    multiply(turned[i8], b, f);
                }
            }
        }
        float* to = out + (long long)blockIdx.x * k * r;
#pragma unroll
        for (int i8 = 0; i8 < RANKS; i8++)
            for (int e = 0; e < 4; e++) {
                int c = col + 16 * WARP + g + 8 * (e >> 1), rank = 8 * i8 + 2 * q + (e & 1);
                if (c < k && rank < r) to[(long long)c * r + rank] = turned[i8][e];
            }
    }
    arrived<0>();
    __syncthreads();
#pragma unroll
    for (int piece = 0; piece < 4; piece++)
        for (int i8 = 0; i8 < RANKS; i8++)
            for (int e = 0; e < 4; e++) memory[(quarter * 128 + 32 * piece + 16 * half + g + 8 * (e >> 1)) * RANK + 8 * i8 + 2 * q + (e & 1)] = sums[piece][i8][e];
    __syncthreads();
    for (int i = threadIdx.x; i < 128 * RANK; i += 32 * WARPS) {
        int row = first + i / RANK, rank = i % RANK;
        float total = 0;
        for (int j = 0; j < 4; j++) total += memory[j * 128 * RANK + i];
        if (row < n && rank < r) h[((long long)blockIdx.y * n + row) * r + rank] = total;
    }
}
#endif

// sums of parts, of n numbers each, of two kinds: 32 numbers a block, whose warps share the parts
extern "C" __global__ void __launch_bounds__(32 * WARPS)
lowrank_sum(const float* parts, float* out, int n, int count, float by, const float* parts2, float* out2, int n2, int count2) {
    __shared__ float some[WARPS][32];
    int i = blockIdx.x, blocks = (n + 31) / 32;
    if (i >= blocks) i -= blocks, n = n2, count = count2, parts = parts2, out = out2, by = 1;
    i = 32 * i + LANE;
    float x = 0;
    if (i < n)
#pragma unroll 4
        for (int c = WARP; c < count; c += WARPS) x += parts[(long long)c * n + i];
    some[WARP][LANE] = x;
    __syncthreads();
    if (WARP || i >= n) return;
    x = 0;
    for (int w = 0; w < WARPS; w++) x += some[w][LANE];
    out[i] = by * x;
}

// out (n, k + more) = x (n, k) with h (n, r) and zeros beside it; k and more are multiples of 4
extern "C" __global__ void __launch_bounds__(256) lowrank_beside(const float* x, long long step, const float* h, float* out, int n, int k, int r, int more) {
    const int width = (k + more) / 4;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < (unsigned)n * width; i += gridDim.x * 256) {
        const int row = i / width, col = 4 * (i % width);
        float a[4];
        if (col < k) load4(a, x + row * step, col, k);
        else
            for (int e = 0; e < 4; e++) a[e] = col - k + e < r ? h[(long long)row * r + col - k + e] : 0;
        store4(out + (long long)row * (k + more), col, k + more, a);
    }
}
