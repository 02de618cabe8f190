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
    const uint8_t *code = group + 2 * (key % 8) + key % 16 / 8;
    const uint32_t shift = 4 * (key / 16);
    uint32_t sum = 0;
    for (uint32_t s = 0; s < m; s++, code += 16, table += 16) {
        sum += table[*code >> shift & 15];
    }
    return sum;
}

// Queries whose sums are found together, since they want the same codes: a byte of a word
// for each.
constexpr uint32_t PACK = 4;

// Words of a packed table that are written at once.
struct alignas(16) Words {
    uint32_t words[4];
};

// Tables of `n` queries, PACK at most, as one, [m, 16] words, by all threads of a block. The
// tables begin `stride` bytes after each other, both multiples of 4.
KIV_BODY void pack_tables(Words *packed, uint32_t thread, uint32_t n_threads,
                          const uint8_t *tables, uint32_t stride, uint32_t n, uint32_t m) {
    for (uint32_t i = thread; i < 4 * m; i += n_threads) {
        Words words = {};
        for (uint32_t query = 0; query < PACK; query++) {
            const uint8_t *table = tables + uint64_t(query) * stride;
            const uint32_t four = query < n ? reinterpret_cast<const uint32_t *>(table)[i] : 0;
            for (uint32_t j = 0; j < 4; j++) {
                words.words[j] |= (four >> 8 * j & 255) << 8 * query;
            }
        }
        packed[i] = words;
    }
}

// Sums of PACK queries, of 16 bits each: 256 bytes at most are added, 65,280.
struct PackedSums {
    // Of queries 0 and 2, of 1 and 3.
    uint32_t even, odd;

    KIV_BODY uint32_t of(uint32_t query) const {
        return (query % 2 ? odd : even) >> query / 2 * 16 & 0xffff;
    }
};

// As `pq_sum`, of packed tables. A row of a table is half of all banks of shared memory, and who
// reads the same bank reads the same word.
KIV_BODY PackedSums pq_sums(const uint8_t *group, const Words *table, uint32_t m, uint32_t key) {
    const uint32_t *row = table->words;
    const uint8_t *code = group + 2 * (key % 8) + key % 16 / 8;
    const uint32_t shift = 4 * (key / 16);
    uint32_t all = 0, odd = 0;
    for (uint32_t s = 0; s < m; s++, code += 16, row += 16) {
        const uint32_t four = row[*code >> shift & 15];
        // With carries from byte to byte: without the odd ones those of even ones are left.
        all += four;
        odd += odd_bytes(four);
    }
    return {all - (odd << 8), odd};
}

}  // namespace kiv
