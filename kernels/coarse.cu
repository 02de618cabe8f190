// Which lists a query wants: its inner products with their centroids, and the
// best of those.

#include "coarse.cuh"

// Products as numbers in the order of floats: block (lists / 16, queries), 256
// threads, 16 to a product. `queries` is [n_queries, dim], `centroids` [n_lists,
// dim], both float; `scores` is [n_queries, n_lists]. `dim` is a multiple of 16.
extern "C" __global__ void kiv_coarse(const float *queries, const float *centroids,
                                      uint32_t n_lists, uint32_t dim, uint32_t *scores) {
    __shared__ float sums[256];
    const uint32_t lane = threadIdx.x % kiv::LANES;
    const uint32_t mine = threadIdx.x / kiv::LANES;
    const uint32_t list = blockIdx.x * (blockDim.x / kiv::LANES) + mine;
    float *lanes = sums + mine * kiv::LANES;
    if (list < n_lists) {
        lanes[lane] = kiv::dot_lane(queries + uint64_t(blockIdx.y) * dim,
                                    centroids + uint64_t(list) * dim, dim, lane);
    }
    __syncwarp();
    for (uint32_t width = kiv::LANES / 2; width > 0; width /= 2) {
        if (list < n_lists) {
            kiv::dot_fold(lanes, lane, width);
        }
        __syncwarp();
    }
    if (list < n_lists && lane == 0) {
        scores[uint64_t(blockIdx.y) * n_lists + list] = kiv::entered(lanes[0]);
    }
}

// The best of every tile: block (tile, query), 256 threads.
extern "C" __global__ void kiv_top_lists(const uint32_t *scores, const uint32_t *names, uint32_t n,
                                         uint32_t row_stride, uint32_t tile, uint32_t k,
                                         uint32_t n_out, uint32_t *out_scores,
                                         uint32_t *out_names) {
    kiv::select_tiles(scores, names, n, row_stride, tile, k, n_out, out_scores, out_names);
}
