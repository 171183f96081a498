// What the kernels of attention and of low ranks share: products of small tiles on tensor cores, and copies to shared memory.
//
// A warp multiplies a tile of 16 x 8 by one of 8 x 8. Lane l holds, with r = l / 4 and q = l % 4,
//     a: rows r, r + 8, r, r + 8 of columns q, q, q + 4, q + 4;    b: rows q, q + 4 of column r;    c: rows r, r, r + 8, r + 8
//     of columns 2q, 2q + 1, 2q, 2q + 1.
// It reads the upper 19 bits of a factor, TensorFloat-32, and its sums round toward zero.
#define LANE ((int)threadIdx.x & 31)
#define WARP ((int)threadIdx.x >> 5)

__device__ __forceinline__ unsigned rounded(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ void multiply(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// four tiles of 8 x 4 from shared memory, of whose row l % 8 of tile l / 8 lane l has the address: it is given row r, column q of each
__device__ __forceinline__ void load_tiles(unsigned* t, const float* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t[0]), "=r"(t[1]), "=r"(t[2]), "=r"(t[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
// to shared memory, without waiting: 16 or 4 bytes, zeros where they are not there
__device__ __forceinline__ void copy16(float* to, const float* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void copy4(float* to, const float* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 4 : 0));
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> __device__ __forceinline__ void arrived() {  // all that this thread copies, but the last LEFT groups
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
