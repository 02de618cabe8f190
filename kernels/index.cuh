// The K-index's search on a device: tables of queries, and scores of lists, keys and
// outliers. Numbers are kiv-index's (search.rs), bit by bit: the same additions in the same
// order. The structures are those of kiv-cuda's `search` module.

#pragma once

#include "coarse.cuh"
#include "portable.cuh"
#include "pq_scan.cuh"
#include "select.cuh"

namespace kiv {

// Centroids of a subquantizer.
constexpr uint32_t CENTROIDS = 16;

// Most subquantizers whose bytes are summed in 16 bits.
constexpr uint32_t MAX_M = 256;

// Most values of a key, and so most runs of MAX_M that an outlier's two codes for each make.
constexpr uint32_t MAX_DIM = 512;
constexpr uint32_t MAX_RUNS = 2 * MAX_DIM / MAX_M;

// Subquantizers of a list beyond those of its mean: its width, and nothing.
constexpr uint32_t EXTRA = 2;

// A codebook: the axes of each subquantizer, where they end, centroids along each axis.
struct Book {
    const uint16_t *axes;
    const uint16_t *ends;
    const float *centroids;
    uint32_t m;
    uint32_t unused;
};

// Keys that were coded together: an era, or newest ones, which have no lists.
struct Part {
    const float *query_map;
    Book fine, coarse;
    const float *centres;
    const float *widths;
    const uint8_t *lists;
    const uint8_t *width_codes;
    const uint32_t *ends;
    const uint8_t *keys;
    const uint32_t *marks;
    const uint32_t *on;
    const uint32_t *beyond;
    const uint8_t *codes;
    const float *vectors;
    uint32_t n_lists, n_keys, n_centres, segment;
    uint32_t n_on, n_beyond;
    // Packed groups that there is room for in each run of outliers' codes.
    uint32_t on_groups;
    // What the first key is called.
    uint32_t id;
    uint32_t head;
    // Where in a row of lists' scores, and of keys', its own begin.
    uint32_t lists_at, keys_at;
    float step;
};

// All that kernels of one search share: where they write, and how much.
struct Shape {
    uint8_t *tables;
    uint32_t *list_scores;
    uint32_t *ranked_scores;
    uint32_t *ranked_names;
    struct Opened *opened;
    // Of the first lists to open: scores to choose from, and what is chosen.
    uint32_t *first_from;
    uint32_t *first_scores;
    uint32_t *first_names;
    uint32_t *key_scores;
    uint32_t *key_ids;
    // Of each row: what lists that are opened later must reach.
    float *least;
    struct Status *status;
    uint32_t dim, group, n_rows;
    uint32_t table_bytes, max_centres;
    uint32_t lists_stride, keys_stride;
    // Lists ranked, and keys of opened ones that there is room for.
    uint32_t n_ranked, room;
    uint32_t probed, kept;
    // Of a sample of newest keys: how many, how many there must be to take one, and which.
    uint32_t sampled, sampled_from, sample_first, sample_end;
    // Whether the host's products fuse.
    uint32_t fuses;
};

// A list that was ranked.
struct Opened {
    uint32_t part, list;
    // Where its keys' scores go; at first how many they are.
    uint32_t slot;
    // When it is opened: first, later if its keys may be good enough, or never.
    uint32_t stage;
};

enum Stage : uint32_t { NEVER = 0, FIRST = 1, LATER = 2 };

// What the host is told of a row.
struct Status {
    // Why it has to search itself.
    uint32_t failed;
    // Lower scores do not count.
    float least;
};

enum Failed : uint32_t { NO = 0, NO_TABLES = 1, NO_ROOM = 2 };

static_assert(sizeof(Book) == 32 && sizeof(Part) == 208, "as the host has them");
static_assert(sizeof(Shape) == 160 && sizeof(Opened) == 16 && sizeof(Status) == 8,
              "as the host has them");

// ---- Tables of one query for one part.

// A table of bytes: a sum of its entries stands for `bias + scale * sum`.
struct Scale {
    float bias, scale;
};

KIV_BODY float score_of(Scale scale, uint32_t sum) { return scale.bias + scale.scale * float(sum); }

// In memory: the query as it is mapped, its products with centres, what a list's score has for
// its width, scales (of lists, of keys, of runs of outliers), and bytes in the same order.
struct Tables {
    float *mapped;
    float *centres;
    float *above;
    Scale *scales;
    uint8_t *lists;
    uint8_t *fine;
    uint8_t *outliers;
};

KIV_BODY Tables tables_of(const Shape &shape, const Part &part, uint32_t number, uint32_t query) {
    uint8_t *at = shape.tables + (uint64_t(number) * shape.group + query) * shape.table_bytes;
    Tables tables;
    tables.mapped = reinterpret_cast<float *>(at);
    tables.centres = tables.mapped + shape.dim;
    tables.above = tables.centres + shape.max_centres;
    tables.scales = reinterpret_cast<Scale *>(tables.above + CENTROIDS);
    tables.lists = reinterpret_cast<uint8_t *>(tables.scales + 2 + MAX_RUNS);
    tables.fine = tables.lists + CENTROIDS * (part.coarse.m ? part.coarse.m + EXTRA : 0);
    tables.outliers = tables.fine + CENTROIDS * part.fine.m;
    return tables;
}

// Those of another query of the head, which lie so many bytes further on.
KIV_BODY Tables beside(Tables tables, uint32_t bytes) {
    const uint32_t floats = bytes / uint32_t(sizeof(float));
    return {tables.mapped + floats,        tables.centres + floats,
            tables.above + floats,         tables.scales + bytes / uint32_t(sizeof(Scale)),
            tables.lists + bytes,          tables.fine + bytes,
            tables.outliers + bytes};
}

// One lane's part of a product, as `dot_lane`, fused or not.
KIV_BODY float product_lane(const float *a, const float *b, uint32_t dim, uint32_t lane,
                            bool fuses) {
    if (fuses) {
        return dot_lane(a, b, dim, lane);
    }
    float sum = 0.0f;
    for (uint32_t i = lane; i < dim; i += LANES) {
        sum = a[i] * b[i] + sum;
    }
    return sum;
}

// What a thread alone finds for a product.
KIV_BODY float product(const float *a, const float *b, uint32_t dim, bool fuses) {
    float lanes[LANES];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        lanes[lane] = product_lane(a, b, dim, lane, fuses);
    }
    for (uint32_t width = LANES / 2; width > 0; width /= 2) {
        for (uint32_t lane = 0; lane < width; lane++) {
            lanes[lane] += lanes[lane + width];
        }
    }
    return lanes[0];
}

// Rows of a query's map that lie side by side, value by value.
constexpr uint32_t ROWS = 32;

// One value of a query as it is mapped: a sum over the query's values, one after another.
KIV_BODY float mapped_value(const float *map, const float *query, uint32_t dim, uint32_t row,
                            bool fuses) {
    const float *column = map + uint64_t(row / ROWS) * dim * ROWS + row % ROWS;
    float sum = 0.0f;
    for (uint32_t d = 0; d < dim; d++) {
        const float value = column[d * ROWS];
        sum = fuses ? fused(query[d], value, sum) : query[d] * value + sum;
    }
    return sum;
}

// How much of a list's score is for a width.
KIV_BODY float root_mean_square(const float *query, uint32_t dim) {
    float square = 0.0f;
    for (uint32_t i = 0; i < dim; i++) {
        square += query[i] * query[i];
    }
    return sqrtf(square / float(dim));
}

// Rows of tables: products of a query with the centroids of one subquantizer. Axes and ends
// are the device's own: whatever they are, nothing outside is read.
struct BookRows {
    const Book *book;
    const float *query;
    uint32_t dim;

    KIV_BODY void row(uint32_t s, float *out) const {
        const uint32_t from = s == 0 ? 0 : book->ends[s - 1];
        const uint32_t to = book->ends[s] < dim ? book->ends[s] : dim;
        for (uint32_t c = 0; c < CENTROIDS; c++) {
            out[c] = 0.0f;
        }
        for (uint32_t i = from; i < to; i++) {
            const uint32_t axis = book->axes[i] < dim ? book->axes[i] : dim - 1;
            const float q = query[axis];
            for (uint32_t c = 0; c < CENTROIDS; c++) {
                out[c] += q * book->centroids[uint64_t(i) * CENTROIDS + c];
            }
        }
    }
};

// Those of lists: of means, of widths, and of nothing.
struct ListRows {
    BookRows means;
    const float *above;

    KIV_BODY void row(uint32_t s, float *out) const {
        if (s < means.book->m) {
            means.row(s, out);
            return;
        }
        for (uint32_t c = 0; c < CENTROIDS; c++) {
            out[c] = s == means.book->m ? above[c] : 0.0f;
        }
    }
};

// Those of one run of outliers' codes: high halves of all values, then low ones.
struct OutlierRows {
    const float *query;
    float step;
    uint32_t dim, first;

    KIV_BODY void row(uint32_t s, float *out) const {
        const uint32_t at = first + s;
        const float q = query[at % dim];
        // A code stands for the middle of its cell.
        const float zero = q * step * -127.5f;
        for (uint32_t c = 0; c < CENTROIDS; c++) {
            const float level = float(c);
            out[c] = at < dim ? zero + q * step * 16.0f * level : q * step * level;
        }
    }
};

// Lowest and highest of a row, by the host's tree: it matters which zero is taken.
KIV_BODY void extent(const float *row, float *low, float *high) {
    float lows[CENTROIDS], highs[CENTROIDS];
    for (uint32_t i = 0; i < CENTROIDS; i++) {
        lows[i] = highs[i] = row[i];
    }
    for (uint32_t width = CENTROIDS / 2; width > 0; width /= 2) {
        for (uint32_t i = 0; i < width; i++) {
            lows[i] = lows[i] < lows[i + width] ? lows[i] : lows[i + width];
            highs[i] = highs[i] > highs[i + width] ? highs[i] : highs[i + width];
        }
    }
    *low = lows[0];
    *high = highs[0];
}

// What threads share that round a table to bytes.
struct LutShared {
    float lows[MAX_M];
    float ranges[MAX_M];
    Scale scale;
    float inverse;
    // Whether a number was none.
    uint32_t bad;
};

// Each thread: of its subquantizer.
template <typename Rows>
KIV_BODY void lut_extents(LutShared &shared, uint32_t s, const Rows &rows, uint32_t m) {
    if (s >= m) {
        return;
    }
    float row[CENTROIDS], low, high;
    rows.row(s, row);
    extent(row, &low, &high);
    for (uint32_t c = 0; c < CENTROIDS; c++) {
        if ((bits_of(row[c]) & 0x7fffffffu) >= 0x7f800000u) {
            shared.bad = 1;
        }
    }
    shared.lows[s] = low;
    shared.ranges[s] = high - low;
}

// Thread 0: of all.
KIV_BODY void lut_scale(LutShared &shared, uint32_t thread, uint32_t m) {
    if (thread != 0) {
        return;
    }
    double bias = 0.0;
    float range = 0.0f;
    for (uint32_t s = 0; s < m; s++) {
        bias += double(shared.lows[s]);
        range = shared.ranges[s] > range ? shared.ranges[s] : range;
    }
    const float total = range * float(m);
    float scale = range / 255.0f;
    if (scale < 1.17549435e-38f) {
        scale = 0.0f;
    }
    shared.scale.bias = float(bias);
    shared.scale.scale = scale;
    shared.inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const uint32_t infinite = 0x7f800000u;
    if ((bits_of(float(bias)) & 0x7fffffffu) >= infinite ||
        (bits_of(total) & 0x7fffffffu) >= infinite) {
        shared.bad = 1;
    }
}

// Each thread: the bytes of its subquantizer.
template <typename Rows>
KIV_BODY void lut_round(const LutShared &shared, uint32_t s, const Rows &rows, uint32_t m,
                        uint8_t *out) {
    if (s >= m) {
        return;
    }
    float row[CENTROIDS];
    rows.row(s, row);
    for (uint32_t c = 0; c < CENTROIDS; c++) {
        // From 2^23 on floats are whole numbers, and their lowest bits say which.
        out[s * CENTROIDS + c] =
            uint8_t(bits_of((row[c] - shared.lows[s]) * shared.inverse + 8388608.0f));
    }
}

// ---- Scores.

// The packed group that has key `i`.
KIV_BODY const uint8_t *group_of(const uint8_t *codes, uint32_t m, uint32_t i) {
    return codes + uint64_t(i / GROUP) * 16 * m;
}

// Of key `i` of packed codes, a product besides.
KIV_BODY uint32_t packed_score(const uint8_t *codes, const uint8_t *table, uint32_t m, uint32_t i,
                               Scale scale, float offset) {
    return entered(score_of(scale, pq_sum(group_of(codes, m, i), table, m, i % GROUP)) + offset);
}

// How many of a head's queries are served together, from this one on.
KIV_BODY uint32_t pack_of(const Shape &shape, uint32_t first) {
    return shape.group - first < PACK ? shape.group - first : PACK;
}

KIV_BODY bool marked(const Part &part, uint32_t key) { return part.marks[key / 32] >> key % 32 & 1; }

// A run of the codes of outliers on the grid, and where its table begins. There are others while
// `run * MAX_M < 2 * dim`.
struct OnRun {
    const uint8_t *codes;
    uint32_t m, table;
};

KIV_BODY OnRun on_run(const Part &part, uint32_t dim, uint32_t run) {
    const uint32_t before = run * MAX_M, left = 2 * dim - before;
    return {part.codes + uint64_t(part.on_groups) * 16 * before, left < MAX_M ? left : MAX_M,
            CENTROIDS * before};
}

// Which centre was subtracted from a key.
KIV_BODY uint32_t centre_of(const Part &part, uint32_t key) {
    const uint32_t segment = key / part.segment;
    return segment < part.n_centres ? segment : part.n_centres - 1;
}

// Places of a list. Nothing beyond the keys is read whatever the device has for them.
KIV_BODY Stretch places_of(const Part &part, uint32_t list) {
    const uint32_t from = list == 0 ? 0 : part.ends[list - 1];
    const uint32_t to = part.ends[list] < part.n_keys ? part.ends[list] : part.n_keys;
    return {from < to ? from : to, to};
}

KIV_BODY uint32_t round_up(uint32_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

// Where the score of an outlier goes, from where its part's keys begin: among newest keys to
// its own place.
KIV_BODY uint32_t outlier_place(const Part &part, uint32_t i, uint32_t key) {
    return part.coarse.m ? i : key;
}

// Where the scores of a key are told: for one query, and those after it.
struct Places {
    uint32_t *scores, *ids;
    uint32_t stride, id;

    KIV_BODY void tell(uint32_t query, float score) const {
        const uint64_t at = uint64_t(query) * stride;
        ids[at] = id;
        scores[at] = entered(score);
    }
};

// Of a part's key, at a place from where its keys begin.
KIV_BODY Places places_in(const Shape &shape, const Part &part, uint32_t query, uint32_t place,
                          uint32_t key) {
    const uint64_t row = part.head * shape.group + query;
    const uint64_t at = row * shape.keys_stride + part.keys_at + place;
    return {shape.key_scores + at, shape.key_ids + at, shape.keys_stride, part.id + key};
}

// ---- Lists to open.

// Which list of which part a place in a row of lists' scores is.
KIV_BODY Opened list_at(const Part *parts, uint32_t from, uint32_t to, uint32_t place) {
    Opened opened = {from, 0, 0, NEVER};
    for (uint32_t p = from; p < to; p++) {
        if (parts[p].coarse.m && parts[p].lists_at <= place) {
            opened.part = p;
        }
    }
    const Part &part = parts[opened.part];
    opened.list = place - part.lists_at;
    if (part.coarse.m && opened.list < part.n_lists) {
        const Stretch places = places_of(part, opened.list);
        opened.slot = places.to - places.from;
        opened.stage = LATER;
    }
    return opened;
}

// Keys of lists that are better than the `i`-th.
KIV_BODY uint32_t keys_before(const Opened *opened, const uint32_t *scores, uint32_t n,
                              uint32_t i) {
    uint32_t keys = 0;
    for (uint32_t j = 0; j < n; j++) {
        const bool better = scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        keys += better && scores[j] ? opened[j].slot : 0;
    }
    return keys;
}

// How much of a list's score is for its width.
KIV_BODY float above_of(const Part &part, const Tables &tables, uint32_t list) {
    return tables.above[part.width_codes[list] % CENTROIDS];
}

// For so many keys that are looked at one list, of the best, is opened whatever the floor is.
constexpr uint32_t ALWAYS = 160;

// Whether keys as far above a list's score as they usually are reach something; with `alone`
// one key that is far from the others of the list. `row` is the query's.
KIV_BODY bool reaches(const Part *parts, const Shape &shape, uint32_t row, const Opened &opened,
                      uint32_t score, float least, bool alone) {
    const Part &part = parts[opened.part];
    if (opened.stage == NEVER) {
        return false;
    }
    const Tables tables = tables_of(shape, part, opened.part, row % shape.group);
    const float above = above_of(part, tables, opened.list);
    const float usual = 0.5f * above, farthest = 4.5f * above - 4.6f;
    return unordered(score) + (alone && farthest > usual ? farthest : usual) >= least;
}

// Some of the newest keys, from the middle of each segment.
struct Sample {
    const uint32_t *scores;
    uint32_t segment, first, each;

    KIV_BODY uint32_t operator[](uint32_t i) const {
        return scores[i / each * segment + first + i % each];
    }
};

}  // namespace kiv
