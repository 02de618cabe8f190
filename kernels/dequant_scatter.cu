// Blocks of cold rows in 8 or 4 bits into the slots of a cache of halves. K and
// V may have different types, or the cache's.
//
// Grid: (moves, parts, 2), the last for K and V. A thread makes two values,
// which it stores as one word.

#include "moves.cuh"

extern "C" __global__ void kiv_dequant_scatter(const __grid_constant__ kiv::Side keys,
                                               const __grid_constant__ kiv::Side values,
                                               const kiv::Move *moves, const uint32_t *cells,
                                               uint32_t n_rows) {
    const kiv::Move &move = moves[blockIdx.x];
    const uint64_t source = move.source[blockIdx.z];
    const kiv::Side &side = blockIdx.z == 0 ? keys : values;
    const uint32_t n = n_rows * (kiv::values_in_row(side.rows) / 2);
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) {
        kiv::dequant_pair(side, move, source, cells, i);
    }
}
