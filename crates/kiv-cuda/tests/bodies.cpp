// The bodies of all kernels under the host's compiler, thread after thread in the
// place of a GPU's: tests/kernels.rs feeds it and compares.
//
// `bodies KERNEL` reads its arguments and memory from standard input, as 32-bit
// numbers and as arrays with their bytes before them, and writes what the kernel
// would have written.

#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

#include "coarse.cuh"
#include "index.cuh"
#include "moves.cuh"
#include "pq_scan.cuh"
#include "select.cuh"

namespace {

void read_bytes(void *to, size_t n) {
    if (n && fread(to, 1, n, stdin) != n) {
        fprintf(stderr, "bodies: input ends too early\n");
        exit(1);
    }
}

uint32_t number() {
    uint32_t value;
    read_bytes(&value, sizeof value);
    return value;
}

// Of the exact length, so that a sanitizer sees every byte beyond.
template <typename T>
std::vector<T> array() {
    std::vector<T> values(number() / sizeof(T));
    read_bytes(values.data(), values.size() * sizeof(T));
    values.shrink_to_fit();
    return values;
}

template <typename T>
void write(const std::vector<T> &values) {
    fwrite(values.data(), sizeof(T), values.size(), stdout);
}

struct Words {
    uint32_t words[4];
};

template <typename Unit>
void scatter(const kiv::Side *sides, const std::vector<kiv::Move> &moves,
             const std::vector<uint32_t> &cells, uint32_t n_rows) {
    for (const kiv::Move &move : moves) {
        for (int which = 0; which < 2; which++) {
            const kiv::Side &side = sides[which];
            const uint32_t n = n_rows * (side.rows.row_bytes / sizeof(Unit));
            for (uint32_t i = 0; i < n; i++) {
                kiv::scatter_unit<Unit>(side, move, move.source[which], cells.data(), i);
            }
        }
    }
}

// Both kinds of scatter: `unit` is 0 for the one that converts.
void scatters() {
    const uint32_t unit = number();
    const uint32_t n_rows = number();
    kiv::Side sides[2];
    for (kiv::Side &side : sides) {
        side.rows.row_bytes = number();
        side.rows.format = number();
        side.cache.cell_bytes = number();
        side.cache.head_bytes = number();
    }
    auto moves = array<kiv::Move>();
    auto cells = array<uint32_t>();
    std::vector<uint8_t> rows[2], caches[2];
    for (int which = 0; which < 2; which++) {
        rows[which] = array<uint8_t>();
        caches[which] = array<uint8_t>();
        sides[which].rows.base = rows[which].data();
        sides[which].cache.base = caches[which].data();
    }
    switch (unit) {
        case 0:
            for (const kiv::Move &move : moves) {
                for (int which = 0; which < 2; which++) {
                    const kiv::Side &side = sides[which];
                    const uint32_t n = n_rows * (kiv::values_in_row(side.rows) / 2);
                    for (uint32_t i = 0; i < n; i++) {
                        kiv::dequant_pair(side, move, move.source[which], cells.data(), i);
                    }
                }
            }
            break;
        case 2: scatter<uint16_t>(sides, moves, cells, n_rows); break;
        case 4: scatter<uint32_t>(sides, moves, cells, n_rows); break;
        case 8: scatter<uint64_t>(sides, moves, cells, n_rows); break;
        case 16: scatter<Words>(sides, moves, cells, n_rows); break;
        default: exit(1);
    }
    write(caches[0]);
    write(caches[1]);
}

void rerotate() {
    kiv::Cache cache;
    cache.cell_bytes = number();
    cache.head_bytes = number();
    const uint32_t n_rows = number(), n_rot = number(), pairing = number();
    auto turns = array<kiv::Turn>();
    auto cells = array<uint32_t>();
    auto table = array<float>();
    auto bytes = array<uint8_t>();
    cache.base = bytes.data();
    for (const kiv::Turn &turn : turns) {
        for (uint32_t i = 0; i < n_rows * (n_rot / 2); i++) {
            kiv::rerotate_pair(cache, turn, cells.data(), table.data(), n_rot, pairing, i);
        }
    }
    write(bytes);
}

// Tables of some queries as one, by all threads of a block.
std::vector<kiv::Words> pack(const uint8_t *tables, uint32_t stride, uint32_t n, uint32_t m) {
    std::vector<kiv::Words> packed(4 * m);
    for (uint32_t thread = 0; thread < kiv::SELECT_THREADS; thread++) {
        kiv::pack_tables(packed.data(), thread, kiv::SELECT_THREADS, tables, stride, n, m);
    }
    return packed;
}

void pq_scan() {
    const uint32_t m = number(), n_queries = number();
    auto packed = array<uint8_t>();
    auto listed = array<uint32_t>();
    auto tables = array<uint8_t>();
    const size_t n_keys = listed.size() * kiv::GROUP;
    std::vector<uint16_t> sums(n_queries * n_keys);
    for (uint32_t first = 0; first < n_queries; first += kiv::PACK) {
        const uint32_t n = n_queries - first < kiv::PACK ? n_queries - first : kiv::PACK;
        const uint8_t *from = tables.data() + first * 16 * m;
        const std::vector<kiv::Words> table = pack(from, 16 * m, n, m);
        for (size_t i = 0; i < n_keys; i++) {
            const uint32_t key = i % kiv::GROUP;
            const uint8_t *group = kiv::group_of(packed.data(), m, listed[i / kiv::GROUP] * kiv::GROUP);
            const kiv::PackedSums found = kiv::pq_sums(group, table.data(), m, key);
            for (uint32_t q = 0; q < n; q++) {
                // Alone as together.
                if (kiv::pq_sum(group, from + q * 16 * m, m, key) != found.of(q)) {
                    exit(1);
                }
                sums[(first + q) * n_keys + i] = uint16_t(found.of(q));
            }
        }
    }
    write(sums);
}

void coarse() {
    const uint32_t dim = number();
    auto queries = array<float>();
    auto centroids = array<float>();
    std::vector<uint32_t> scores;
    for (size_t q = 0; q < queries.size(); q += dim) {
        for (size_t c = 0; c < centroids.size(); c += dim) {
            float lanes[kiv::LANES];
            for (uint32_t lane = 0; lane < kiv::LANES; lane++) {
                lanes[lane] = kiv::dot_lane(&queries[q], &centroids[c], dim, lane);
            }
            for (uint32_t width = kiv::LANES / 2; width > 0; width /= 2) {
                for (uint32_t lane = 0; lane < kiv::LANES; lane++) {
                    kiv::dot_fold(lanes, lane, width);
                }
            }
            const uint32_t score = kiv::entered(lanes[0]);
            const bool is_number = lanes[0] == lanes[0];
            if (is_number && kiv::bits_of(kiv::unordered(score)) != kiv::bits_of(lanes[0])) {
                exit(1);
            }
            scores.push_back(score);
        }
    }
    write(scores);
}

// What is between two barriers, for all threads of a block.
template <typename Phase>
void all_threads(Phase phase) {
    for (uint32_t thread = 0; thread < kiv::SELECT_THREADS; thread++) {
        phase(thread);
    }
}

template <typename Score>
void top() {
    const uint32_t tile = number(), k = number();
    auto scores = array<Score>();
    auto names = array<uint32_t>();
    const uint32_t n = uint32_t(scores.size());
    std::vector<Score> out_scores;
    std::vector<uint32_t> out_names;
    for (uint32_t first = 0; first < n; first += tile) {
        const uint32_t here = n - first < tile ? n - first : tile;
        const uint32_t wanted = k < here ? k : here;
        std::vector<Score> best(wanted);
        std::vector<uint32_t> best_names(wanted);
        const Score *from = scores.data() + first;
        const uint32_t *called = names.empty() ? nullptr : names.data() + first;
        kiv::SelectShared shared;
        all_threads([&](uint32_t t) { kiv::select_begin(shared, t, wanted); });
        for (int shift = 8 * int(sizeof(Score)) - 8; shift >= 0; shift -= 8) {
            all_threads([&](uint32_t t) { kiv::select_count(shared, t, from, here, uint32_t(shift)); });
            all_threads([&](uint32_t t) { kiv::select_sum_bytes(shared, t, uint32_t(shift)); });
            all_threads([&](uint32_t t) { kiv::select_narrow(shared, t, uint32_t(shift)); });
        }
        kiv::Before before = {0, 0};
        for (uint32_t at = 0; at < here; at += kiv::CHUNK) {
            const uint32_t some = here - at < kiv::CHUNK ? here - at : kiv::CHUNK;
            all_threads([&](uint32_t t) { kiv::select_mark(shared, t, from + at, some); });
            all_threads([&](uint32_t t) { kiv::select_tally(shared, t); });
            all_threads([&](uint32_t t) { kiv::select_sum(shared, t); });
            all_threads([&](uint32_t t) {
                kiv::select_take(shared, t, from + at, called ? called + at : nullptr, first + at,
                                 before, best.data(), best_names.data());
            });
            before = kiv::select_passed(shared, before);
        }
        out_scores.insert(out_scores.end(), best.begin(), best.end());
        out_names.insert(out_names.end(), best_names.begin(), best_names.end());
    }
    write(out_scores);
    write(out_names);
}

// Rows of a table as they are given.
struct GivenRows {
    const float *table;

    void row(uint32_t s, float *out) const {
        for (uint32_t c = 0; c < kiv::CENTROIDS; c++) {
            out[c] = table[s * kiv::CENTROIDS + c];
        }
    }
};

// Whether rounding found a number that is none, scale and bias, and the bytes.
template <typename Rows>
void write_lut(const Rows &rows, uint32_t m) {
    kiv::LutShared shared;
    shared.bad = 0;
    std::vector<uint8_t> bytes(kiv::CENTROIDS * m);
    all_threads([&](uint32_t t) { kiv::lut_extents(shared, t, rows, m); });
    all_threads([&](uint32_t t) { kiv::lut_scale(shared, t, m); });
    all_threads([&](uint32_t t) { kiv::lut_round(shared, t, rows, m, bytes.data()); });
    write(std::vector<uint32_t>{shared.bad, kiv::bits_of(shared.scale.scale),
                                kiv::bits_of(shared.scale.bias)});
    write(bytes);
}

void lut() {
    const uint32_t m = number();
    auto table = array<float>();
    write_lut(GivenRows{table.data()}, m);
}

// Tables of a query: by a codebook, by it and widths, and by a grid.
void index_tables() {
    const uint32_t dim = number(), m = number();
    auto query = array<float>();
    auto axes = array<uint16_t>();
    auto ends = array<uint16_t>();
    auto centroids = array<float>();
    auto above = array<float>();
    auto step = array<float>();
    auto map = array<float>();
    const kiv::Book book = {axes.data(), ends.data(), centroids.data(), m, 0};
    const kiv::BookRows means = {&book, query.data(), dim};
    write_lut(means, m);
    write_lut(kiv::ListRows{means, above.data()}, m + kiv::EXTRA);
    for (uint32_t first = 0; first < 2 * dim; first += kiv::MAX_M) {
        const uint32_t left = 2 * dim - first;
        write_lut(kiv::OutlierRows{query.data(), step[0], dim, first},
                  left < kiv::MAX_M ? left : kiv::MAX_M);
    }
    write(std::vector<float>{kiv::root_mean_square(query.data(), dim),
                             kiv::product(query.data(), query.data(), dim, true),
                             kiv::product(query.data(), query.data(), dim, false)});
    for (const bool fuses : {true, false}) {
        std::vector<float> mapped;
        for (uint32_t row = 0; row < dim; row++) {
            mapped.push_back(kiv::mapped_value(map.data(), query.data(), dim, row, fuses));
        }
        write(mapped);
    }
}

// Scores of all keys, in lists that say more than there is, and of outliers on the grid.
void index_scores() {
    const uint32_t dim = number(), m = number(), n_keys = number(), on_groups = number();
    auto keys = array<uint8_t>();
    auto ends = array<uint32_t>();
    auto marks = array<uint32_t>();
    auto codes = array<uint8_t>();
    auto table = array<uint8_t>();
    auto outliers = array<uint8_t>();
    auto scales = array<float>();
    kiv::Part part = {};
    part.n_lists = uint32_t(ends.size());
    part.n_keys = n_keys;
    part.on_groups = on_groups;
    part.ends = ends.data();
    part.keys = keys.data();
    part.marks = marks.data();
    part.codes = codes.data();
    kiv::Tables tables = {};
    tables.scales = reinterpret_cast<kiv::Scale *>(scales.data());
    tables.fine = table.data();
    std::vector<uint32_t> scores;
    std::vector<float> products;
    for (uint32_t list = 0; list < part.n_lists; list++) {
        const kiv::Stretch places = kiv::places_of(part, list);
        for (uint32_t key = places.from; key < places.to; key++) {
            const uint32_t score = kiv::packed_score(part.keys, tables.fine, m, key,
                                                     tables.scales[1], float(list));
            scores.push_back(kiv::marked(part, key) ? 0 : score);
        }
    }
    products.resize(on_groups * kiv::GROUP);
    for (uint32_t number = 0; number * kiv::MAX_M < 2 * dim; number++) {
        const kiv::OnRun run = kiv::on_run(part, dim, number);
        const std::vector<kiv::Words> packed = pack(outliers.data() + run.table, 0, 1, run.m);
        for (uint32_t i = 0; i < products.size(); i++) {
            const uint8_t *group = kiv::group_of(run.codes, run.m, i);
            const kiv::PackedSums sums = kiv::pq_sums(group, packed.data(), run.m, i % kiv::GROUP);
            products[i] += kiv::score_of(tables.scales[2 + number], sums.of(0));
        }
    }
    write(scores);
    write(products);
}

// Every half to single, and floats to half.
void halves() {
    std::vector<float> floats;
    for (uint32_t half = 0; half < 65536; half++) {
        floats.push_back(kiv::half_to_float(uint16_t(half)));
    }
    write(floats);
    std::vector<uint16_t> back;
    for (float value : array<float>()) {
        back.push_back(kiv::float_to_half(value));
    }
    write(back);
}

}  // namespace

int main(int argc, char **argv) {
    const std::string kernel = argc == 2 ? argv[1] : "";
    if (kernel == "scatter") {
        scatters();
    } else if (kernel == "rerotate") {
        rerotate();
    } else if (kernel == "pq_scan") {
        pq_scan();
    } else if (kernel == "coarse") {
        coarse();
    } else if (kernel == "top_sums") {
        top<uint16_t>();
    } else if (kernel == "top_lists") {
        top<uint32_t>();
    } else if (kernel == "lut") {
        lut();
    } else if (kernel == "index_tables") {
        index_tables();
    } else if (kernel == "index_scores") {
        index_scores();
    } else if (kernel == "halves") {
        halves();
    } else {
        fprintf(stderr, "bodies: no kernel %s\n", kernel.c_str());
        return 1;
    }
    return 0;
}
