// Inner products of queries with the centroids of lists.

#pragma once

#include "portable.cuh"
#include "select.cuh"

namespace kiv {

// Threads that share one product: so many sums run side by side, on the CPU too
// (kiv-numeric's `dot`), and are added by halves.
constexpr uint32_t LANES = 16;

// One lane's part of a product of vectors, whose length is a multiple of 16.
KIV_BODY float dot_lane(const float *a, const float *b, uint32_t dim, uint32_t lane) {
    float sum = 0.0f;
    for (uint32_t i = lane; i < dim; i += LANES) {
        sum = fused(a[i], b[i], sum);
    }
    return sum;
}

// One step of adding up: the upper half of `2 * width` lanes onto the lower.
KIV_BODY void dot_fold(float *lanes, uint32_t lane, uint32_t width) {
    if (lane < width) {
        lanes[lane] += lanes[lane + width];
    }
}

}  // namespace kiv
