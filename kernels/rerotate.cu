// K rows of a cache of halves, turned by a delta of position, in place: for
// positions that are remapped. Rows should come fresh from the cold store,
// because each turn rounds.
//
// Grid: (turns, parts).

#include "moves.cuh"

extern "C" __global__ void kiv_rerotate(kiv::Cache cache, const kiv::Turn *turns,
                                        const uint32_t *cells, const float *table,
                                        uint32_t n_rows, uint32_t n_rot, uint32_t pairing) {
    const kiv::Turn turn = turns[blockIdx.x];
    const uint32_t n = n_rows * (n_rot / 2);
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) {
        kiv::rerotate_pair(cache, turn, cells, table, n_rot, pairing, i);
    }
}
