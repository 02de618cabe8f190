// The K-index's search of one layer: every query of every head, eras and newest keys. What is
// found is what kiv-index finds, bit by bit. docs/cuda.md says in which order these run.
//
// A row is one query of one head. All blocks have 256 threads.

#include "index.cuh"

namespace kiv {

__device__ __forceinline__ const Part *part_here(const Part *parts) { return parts + blockIdx.y; }

// What is not written afterwards is no score.
extern "C" __global__ void kiv_index_clear(uint32_t *words, uint32_t n) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        words[i] = 0;
    }
}

template <typename Rows>
__device__ void make_lut(LutShared &shared, const Rows &rows, uint32_t m, uint8_t *bytes,
                         Scale *scale) {
    lut_extents(shared, threadIdx.x, rows, m);
    __syncthreads();
    lut_scale(shared, threadIdx.x, m);
    __syncthreads();
    lut_round(shared, threadIdx.x, rows, m, bytes);
    if (threadIdx.x == 0) {
        *scale = shared.scale;
    }
    __syncthreads();
}

// Tables: block (part, query of the group). `queries` is [rows, dim].
extern "C" __global__ void kiv_index_tables(const Part *parts, const Shape *shapes,
                                            const float *queries) {
    __shared__ float sums[256];
    __shared__ LutShared shared;
    const Part &part = parts[blockIdx.x];
    const Shape &shape = *shapes;
    const uint32_t row = part.head * shape.group + blockIdx.y;
    const Tables tables = tables_of(shape, part, blockIdx.x, blockIdx.y);
    const float *query = queries + uint64_t(row) * shape.dim;
    const uint32_t lane = threadIdx.x % LANES;
    const uint32_t mine = threadIdx.x / LANES;
    float *lanes = sums + mine * LANES;
    if (threadIdx.x == 0) {
        shared.bad = 0;
    }
    for (uint32_t i = threadIdx.x; i < shape.dim; i += blockDim.x) {
        tables.mapped[i] = mapped_value(part.query_map, query, shape.dim, i, shape.fuses != 0);
    }
    __syncthreads();
    // Its products with centres: 16 threads to each.
    for (uint32_t first = 0; first < part.n_centres; first += 256 / LANES) {
        const uint32_t i = first + mine;
        if (i < part.n_centres) {
            lanes[lane] = product_lane(part.centres + uint64_t(i) * shape.dim, tables.mapped,
                                       shape.dim, lane, shape.fuses != 0);
        }
        __syncwarp();
        for (uint32_t width = LANES / 2; width > 0; width /= 2) {
            if (i < part.n_centres) {
                dot_fold(lanes, lane, width);
            }
            __syncwarp();
        }
        if (i < part.n_centres && lane == 0) {
            tables.centres[i] = lanes[0];
        }
        __syncwarp();
    }
    __syncthreads();
    if (part.coarse.m) {
        if (threadIdx.x < CENTROIDS) {
            tables.above[threadIdx.x] =
                part.widths[threadIdx.x] * root_mean_square(tables.mapped, shape.dim);
        }
        __syncthreads();
        const ListRows rows = {{&part.coarse, tables.mapped, shape.dim}, tables.above};
        make_lut(shared, rows, part.coarse.m + EXTRA, tables.lists, tables.scales);
    }
    const BookRows rows = {&part.fine, tables.mapped, shape.dim};
    make_lut(shared, rows, part.fine.m, tables.fine, tables.scales + 1);
    uint8_t *bytes = tables.outliers;
    for (uint32_t run = 0; run * MAX_M < 2 * shape.dim; run++) {
        const uint32_t left = 2 * shape.dim - run * MAX_M;
        const uint32_t m = left < MAX_M ? left : MAX_M;
        const OutlierRows rows = {tables.mapped, part.step, shape.dim, run * MAX_M};
        make_lut(shared, rows, m, bytes, tables.scales + 2 + run);
        bytes += CENTROIDS * m;
    }
    if (threadIdx.x == 0 && shared.bad) {
        // Whichever part says so.
        shape.status[row].failed = NO_TABLES;
    }
}

// Room for the tables of some queries.
using Packed = Words[MAX_M * CENTROIDS / 4];

// Scores of all means of lists: block (256 lists, part, 4 queries of the group).
extern "C" __global__ void kiv_index_lists(const Part *parts, const Shape *shapes) {
    __shared__ Packed table;
    const Part &part = *part_here(parts);
    const Shape &shape = *shapes;
    if (!part.coarse.m || blockIdx.x * blockDim.x >= part.n_lists) {
        return;
    }
    const uint32_t m = part.coarse.m + EXTRA;
    const uint32_t query = blockIdx.z * PACK, n = pack_of(shape, query);
    const uint32_t table_bytes = shape.table_bytes, stride = shape.lists_stride;
    const Tables tables = tables_of(shape, part, blockIdx.y, query);
    pack_tables(table, threadIdx.x, blockDim.x, tables.lists, table_bytes, n, m);
    __syncthreads();
    const uint32_t list = blockIdx.x * blockDim.x + threadIdx.x;
    if (list >= part.n_lists) {
        return;
    }
    const PackedSums sums = pq_sums(group_of(part.lists, m, list), table, m, list % GROUP);
    const uint64_t row = part.head * shape.group + query;
    uint32_t *scores = shape.list_scores + row * stride + part.lists_at + list;
    for (uint32_t q = 0; q < n; q++) {
        const Tables its = beside(tables, q * table_bytes);
        scores[uint64_t(q) * stride] = entered(score_of(its.scales[0], sums.of(q)) + its.centres[0]);
    }
}

// Which of the ranked lists are opened first, later or never, and where their keys' scores
// go: block (row). `heads` says where each head's parts begin, `floors` from which score on
// keys are worth it.
extern "C" __global__ void kiv_index_open(const Part *parts, const Shape *shapes,
                                          const uint32_t *heads, const float *floors) {
    __shared__ SelectShared select;
    __shared__ Counts keys, lists;
    const Shape &shape = *shapes;
    const uint32_t row = blockIdx.x;
    const uint32_t head = row / shape.group;
    const uint32_t n = shape.n_ranked;
    Opened *opened = shape.opened + uint64_t(row) * n;
    const uint32_t *scores = shape.ranked_scores + uint64_t(row) * n;
    const uint32_t *names = shape.ranked_names + uint64_t(row) * n;
    uint32_t *from = shape.first_from + uint64_t(row) * n;
    const Stretch mine = stretch_of(n, threadIdx.x);
    uint32_t *best = shape.first_scores + uint64_t(row) * n;
    uint32_t *chosen = shape.first_names + uint64_t(row) * n;
    const uint32_t always = n < shape.probed / ALWAYS ? n : shape.probed / ALWAYS;
    if (always > 0) {
        select_tile(select, scores, static_cast<const uint32_t *>(nullptr), 0, n, always, best,
                    chosen);
    }
    for (uint32_t i = mine.from; i < mine.to; i++) {
        from[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < always; i += blockDim.x) {
        from[chosen[i]] = 1;
    }
    __syncthreads();
    for (uint32_t i = mine.from; i < mine.to; i++) {
        opened[i] = list_at(parts, heads[head], heads[head + 1], names[i]);
        const bool is_opened =
            from[i] || reaches(parts, shape, row, opened[i], scores[i], floors[row], true);
        if (!scores[i] || !is_opened) {
            opened[i].stage = NEVER;
            // It is no longer one of those that others come after.
            opened[i].slot = 0;
        }
    }
    // Twice: of all, and of those that are left where lists are long.
    uint32_t all = 0;
    for (uint32_t round = 0; round < 2; round++) {
        uint32_t n_keys = 0, n_lists = 0;
        for (uint32_t i = mine.from; i < mine.to; i++) {
            const bool is = opened[i].stage != NEVER;
            n_keys += is ? opened[i].slot : 0;
            n_lists += is;
        }
        keys.each[threadIdx.x] = n_keys;
        lists.each[threadIdx.x] = n_lists;
        __syncthreads();
        sum_both(keys, lists, threadIdx.x);
        __syncthreads();
        all = sum_before(keys, SELECT_THREADS);
        if (round == 0 && all > shape.probed + shape.probed / 2) {
            for (uint32_t i = mine.from; i < mine.to; i++) {
                if (keys_before(opened, scores, n, i) >= shape.probed) {
                    opened[i].stage = NEVER;
                }
            }
        }
        __syncthreads();
    }
    const uint32_t first = sum_before(lists, SELECT_THREADS) / 4;
    for (uint32_t i = mine.from; i < mine.to; i++) {
        from[i] = opened[i].stage == NEVER ? 0 : scores[i];
    }
    __syncthreads();
    if (first > 0) {
        select_tile(select, from, static_cast<const uint32_t *>(nullptr), 0, n, first, best,
                    chosen);
        for (uint32_t i = threadIdx.x; i < first; i += blockDim.x) {
            opened[chosen[i]].stage = FIRST;
        }
    }
    __syncthreads();
    uint32_t at = sum_before(keys, threadIdx.x);
    for (uint32_t i = mine.from; i < mine.to; i++) {
        if (opened[i].stage != NEVER) {
            const uint32_t size = opened[i].slot;
            opened[i].slot = at;
            at += size;
        }
    }
    if (threadIdx.x == 0 && all > shape.room) {
        shape.status[row].failed = NO_ROOM;
    }
}

// Scores of the keys of lists that are opened at this stage: block (8 lists, row), a warp to
// each.
extern "C" __global__ void kiv_index_keys(const Part *parts, const Shape *shapes, uint32_t stage) {
    const Shape &shape = *shapes;
    const uint32_t number = blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    const uint64_t row = blockIdx.y;
    // Of a row that has failed nothing is told.
    if (number >= shape.n_ranked || shape.status[row].failed) {
        return;
    }
    const Opened opened = shape.opened[row * shape.n_ranked + number];
    if (opened.stage != stage) {
        return;
    }
    const uint32_t score = shape.ranked_scores[row * shape.n_ranked + number];
    if (stage == LATER &&
        !reaches(parts, shape, blockIdx.y, opened, score, shape.least[row], false)) {
        return;
    }
    const Part &part = parts[opened.part];
    const Tables tables = tables_of(shape, part, opened.part, blockIdx.y % shape.group);
    // A list's score is above its mean, and has the centre in it.
    const float offset = unordered(score) - above_of(part, tables, opened.list);
    const Stretch places = places_of(part, opened.list);
    for (uint32_t key = places.from + threadIdx.x % GROUP; key < places.to; key += GROUP) {
        const uint32_t slot = opened.slot + key - places.from;
        if (slot >= shape.room) {
            break;
        }
        if (!marked(part, key)) {
            shape.key_ids[row * shape.keys_stride + slot] = part.id + key;
            shape.key_scores[row * shape.keys_stride + slot] =
                packed_score(part.keys, tables.fine, part.fine.m, key, tables.scales[1], offset);
        }
    }
}

// The `k`-th best of `n` scores, for the whole block; 0 if there are fewer.
template <typename Scores>
__device__ uint32_t kth_best(SelectShared &select, const Scores &scores, uint32_t n, uint32_t k) {
    if (n < k) {
        return 0;
    }
    select_threshold<4>(select, scores, n, k);
    return select.threshold;
}

// What keys of lists that are opened later must reach, if there is not room for all: block (row).
extern "C" __global__ void kiv_index_least(const Shape *shapes, const float *floors) {
    __shared__ SelectShared select;
    const Shape &shape = *shapes;
    const uint32_t *scores = shape.key_scores + uint64_t(blockIdx.x) * shape.keys_stride;
    const uint32_t least = kth_best(select, scores, shape.room, shape.kept);
    if (threadIdx.x == 0) {
        const bool is_full = least && unordered(least) > floors[blockIdx.x];
        shape.least[blockIdx.x] = is_full ? unordered(least) : float_of(0xff800000u);
    }
}

// Scores of all newest keys: block (256 keys, part, 4 queries of the group).
extern "C" __global__ void kiv_index_newest(const Part *parts, const Shape *shapes) {
    __shared__ Packed table;
    const Part &part = *part_here(parts);
    const Shape &shape = *shapes;
    if (part.coarse.m || blockIdx.x * blockDim.x >= part.n_keys) {
        return;
    }
    const uint32_t m = part.fine.m;
    const uint32_t query = blockIdx.z * PACK, n = pack_of(shape, query);
    const uint32_t table_bytes = shape.table_bytes;
    const Tables tables = tables_of(shape, part, blockIdx.y, query);
    pack_tables(table, threadIdx.x, blockDim.x, tables.fine, table_bytes, n, m);
    __syncthreads();
    const uint32_t key = blockIdx.x * blockDim.x + threadIdx.x;
    if (key >= part.n_keys || marked(part, key)) {
        return;
    }
    const PackedSums sums = pq_sums(group_of(part.keys, m, key), table, m, key % GROUP);
    const uint32_t centre = centre_of(part, key);
    const Places places = places_in(shape, part, query, key, key);
    for (uint32_t q = 0; q < n; q++) {
        const Tables its = beside(tables, q * table_bytes);
        places.tell(q, score_of(its.scales[1], sums.of(q)) + its.centres[centre]);
    }
}

// Where there are newest keys alone, and many: what the best of a sample of them are, which
// others must reach. Block (row).
extern "C" __global__ void kiv_index_sample(const Part *parts, const Shape *shapes,
                                            const uint32_t *heads) {
    __shared__ SelectShared select;
    const Shape &shape = *shapes;
    const uint32_t row = blockIdx.x;
    const uint32_t head = row / shape.group;
    float least = float_of(0xff800000u);
    if (heads[head] < heads[head + 1]) {
        const Part &part = parts[heads[head]];
        if (!part.coarse.m && part.n_keys > shape.sampled_from) {
            const Sample sample = {
                shape.key_scores + uint64_t(row) * shape.keys_stride + part.keys_at, part.segment,
                shape.sample_first, shape.sample_end - shape.sample_first};
            const uint32_t n = part.n_keys / part.segment * sample.each;
            const uint32_t best = kth_best(select, sample, n, shape.sampled);
            least = best ? unordered(best) : least;
        }
    }
    if (threadIdx.x == 0) {
        shape.status[row].least = least;
    }
}

// Scores of all outliers, which are in no sample: block (256 of them, part, query of the group).
// Those on the grid are done for 4 queries by every fourth block.
extern "C" __global__ void kiv_index_outliers(const Part *parts, const Shape *shapes) {
    __shared__ Packed table;
    const Part &part = *part_here(parts);
    const Shape &shape = *shapes;
    const uint32_t n_on = part.n_on, first_beyond = round_up(n_on);
    const uint32_t first = blockIdx.x * blockDim.x, i = first + threadIdx.x;
    const uint32_t query = blockIdx.z, dim = shape.dim;
    const Tables tables = tables_of(shape, part, blockIdx.y, query);
    if (first < n_on && query % PACK == 0) {
        const uint32_t n = pack_of(shape, query), table_bytes = shape.table_bytes;
        float products[PACK] = {};
        for (uint32_t number = 0; number * MAX_M < 2 * dim; number++) {
            const OnRun run = on_run(part, dim, number);
            pack_tables(table, threadIdx.x, blockDim.x, tables.outliers + run.table, table_bytes, n,
                        run.m);
            __syncthreads();
            if (i < n_on) {
                const PackedSums sums =
                    pq_sums(group_of(run.codes, run.m, i), table, run.m, i % GROUP);
                for (uint32_t q = 0; q < PACK; q++) {
                    const Scale scale = beside(tables, q < n ? q * table_bytes : 0).scales[2 + number];
                    products[q] += score_of(scale, sums.of(q));
                }
            }
            // Before the next run's tables are written.
            __syncthreads();
        }
        if (i < n_on && part.on[i] < part.n_keys) {
            const uint32_t key = part.on[i], centre = centre_of(part, key);
            const Places places = places_in(shape, part, query, outlier_place(part, i, key), key);
            for (uint32_t q = 0; q < PACK; q++) {
                if (q < n) {
                    places.tell(q, products[q] + beside(tables, q * table_bytes).centres[centre]);
                }
            }
        }
    }
    if (i >= first_beyond && i < first_beyond + part.n_beyond) {
        const uint32_t other = i - first_beyond, key = part.beyond[other];
        const float *vector = part.vectors + uint64_t(other) * dim;
        const float found = product(tables.mapped, vector, dim, shape.fuses != 0);
        if (key < part.n_keys) {
            const float centre = tables.centres[centre_of(part, key)];
            places_in(shape, part, query, outlier_place(part, i, key), key).tell(0, found + centre);
        }
    }
}

}  // namespace kiv
