// Blocks of cold rows into the slots of a cache of the same type: one launch
// for all KV heads, K and V, in place of a copy for every row.
//
// Grid: (moves, parts, 2), the last for K and V. Rows may be in mapped host
// memory: neighbouring threads read neighbouring units, so that reads over the
// bus are as long as they can be.

#include "moves.cuh"

template <typename Unit>
__device__ __forceinline__ void scatter(const kiv::Side &keys, const kiv::Side &values,
                                        const kiv::Move *moves, const uint32_t *cells,
                                        uint32_t n_rows) {
    const kiv::Move &move = moves[blockIdx.x];
    const uint64_t source = move.source[blockIdx.z];
    const kiv::Side &side = blockIdx.z == 0 ? keys : values;
    const uint32_t n = n_rows * (side.rows.row_bytes / sizeof(Unit));
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) {
        kiv::scatter_unit<Unit>(side, move, source, cells, i);
    }
}

// Widest first: the host takes the first that divides all lengths and offsets.
#define KIV_SCATTER(NAME, UNIT)                                                             \
    extern "C" __global__ void NAME(const __grid_constant__ kiv::Side keys,                 \
                                    const __grid_constant__ kiv::Side values,               \
                                    const kiv::Move *moves, const uint32_t *cells,          \
                                    uint32_t n_rows) {                                      \
        scatter<UNIT>(keys, values, moves, cells, n_rows);                                  \
    }

KIV_SCATTER(kiv_scatter_16, uint4)
KIV_SCATTER(kiv_scatter_8, uint2)
KIV_SCATTER(kiv_scatter_4, uint32_t)
KIV_SCATTER(kiv_scatter_2, uint16_t)
