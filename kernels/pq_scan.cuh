// Sums of table entries for packed 4-bit codes: the layout is kiv-fastscan's,
// which its documentation describes.

#pragma once

#include "portable.cuh"

namespace kiv {

// Keys of a packed group: as many as a warp has threads.
constexpr uint32_t GROUP = 32;

// Sum of the bytes that `key`, of a packed group of `m` subquantizers, finds in a
// query's table, [m, 16]. All keys of a group read the same 16 bytes of the table
// at a time, which are four banks of shared memory: no two words collide.
KIV_BODY uint32_t pq_sum(const uint8_t *group, const uint8_t *table, uint32_t m, uint32_t key) {
    const uint32_t byte = 2 * (key % 8) + key % 16 / 8;
    const uint32_t shift = 4 * (key / 16);
    uint32_t sum = 0;
    for (uint32_t s = 0; s < m; s++) {
        sum += table[16 * s + (group[16 * s + byte] >> shift & 15)];
    }
    return sum;
}

}  // namespace kiv
