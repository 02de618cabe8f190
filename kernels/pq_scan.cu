// Approximate inner products of queries with packed keys, and the best of them.
// Sums are those of kiv-fastscan, bit by bit.

#include "pq_scan.cuh"
#include "select.cuh"

// Sums of all keys of some groups for all queries: block (groups / warps,
// queries / 4), one warp a group. `listed` names the groups, or is null for the first
// `n_groups`. `tables` is [n_queries, m, 16]; `sums` is [n_queries, n_groups * 32].
// Shared memory: 64 m bytes for the tables and 16 m for each warp's codes.
extern "C" __global__ void kiv_pq_scan(const uint8_t *packed, const uint32_t *listed,
                                       uint32_t n_groups, const uint8_t *tables,
                                       uint32_t n_queries, uint32_t m, uint16_t *sums) {
    extern __shared__ uint4 room[];
    kiv::Words *table = reinterpret_cast<kiv::Words *>(room);
    const uint32_t first = blockIdx.y * kiv::PACK;
    const uint32_t n = n_queries - first < kiv::PACK ? n_queries - first : kiv::PACK;
    kiv::pack_tables(table, threadIdx.x, blockDim.x, tables + uint64_t(first) * 16 * m, 16 * m, n,
                     m);
    __syncthreads();
    const uint32_t warp = threadIdx.x / kiv::GROUP;
    const uint32_t key = threadIdx.x % kiv::GROUP;
    const uint32_t at = blockIdx.x * (blockDim.x / kiv::GROUP) + warp;
    if (at >= n_groups) {
        return;
    }
    const uint32_t group = listed ? listed[at] : at;
    uint4 *codes = room + 4 * m + warp * m;
    const uint4 *from = reinterpret_cast<const uint4 *>(packed) + uint64_t(group) * m;
    for (uint32_t i = key; i < m; i += kiv::GROUP) {
        codes[i] = from[i];
    }
    __syncwarp();
    const kiv::PackedSums found =
        kiv::pq_sums(reinterpret_cast<const uint8_t *>(codes), table, m, key);
    for (uint32_t query = 0; query < n; query++) {
        sums[(uint64_t(first + query) * n_groups + at) * kiv::GROUP + key] =
            uint16_t(found.of(query));
    }
}

// The best of every tile: block (tile, query), 256 threads.
extern "C" __global__ void kiv_top_sums(const uint16_t *sums, const uint32_t *names, uint32_t n,
                                        uint32_t row_stride, uint32_t tile, uint32_t k,
                                        uint32_t n_out, uint16_t *out_sums, uint32_t *out_names) {
    kiv::select_tiles(sums, names, n, row_stride, tile, k, n_out, out_sums, out_names);
}
