// Rows of blocks into cells of a cache: what scatter.cu, dequant_scatter.cu and
// rerotate.cu share. The structures are those of kiv-cuda's `work` module.

#pragma once

#include "portable.cuh"

namespace kiv {

// Types of cold rows, by the number that the host gives them.
enum Format : uint32_t { AS_IS = 0, Q8_0 = 1, Q4_0 = 2 };

// A K or V cache as ggml lays it out: cell after cell, and in a cell the rows
// of all KV heads side by side.
struct Cache {
    uint8_t *base;
    uint32_t cell_bytes;
    uint32_t head_bytes;
};

// Cold rows of K or V: wherever a move says, in rows of one length. The memory
// is the device's, or the host's if that is mapped.
struct Rows {
    const uint8_t *base;
    uint32_t row_bytes;
    uint32_t format;
};

// K or V: where rows come from and where they go.
struct Side {
    Rows rows;
    Cache cache;
};

// One block of one KV head.
struct Move {
    // Bytes from the base of the rows of K, and of V.
    uint64_t source[2];
    // Where in the list of cells those of this block begin.
    uint32_t cells;
    uint32_t head;
};

static_assert(sizeof(Cache) == 16 && sizeof(Rows) == 16, "as the host has them");
static_assert(sizeof(Move) == 24, "as the host has it");

// The row of one KV head in a cell.
KIV_BODY uint8_t *row_in(const Cache &cache, uint32_t cell, uint32_t head) {
    return cache.base + uint64_t(cell) * cache.cell_bytes + uint64_t(head) * cache.head_bytes;
}

// Copies the `i`-th unit of a block whose rows have the cache's type.
//
// A slot's cells need not follow each other, so each row looks its cell up.
template <typename Unit>
KIV_BODY void scatter_unit(const Side &side, const Move &move, uint64_t source,
                           const uint32_t *cells, uint32_t i) {
    const uint32_t per_row = side.rows.row_bytes / sizeof(Unit);
    const uint32_t row = i / per_row;
    const uint32_t unit = i % per_row;
    const uint8_t *from = side.rows.base + source + uint64_t(row) * side.rows.row_bytes;
    uint8_t *to = row_in(side.cache, cells[move.cells + row], move.head);
    reinterpret_cast<Unit *>(to)[unit] = reinterpret_cast<const Unit *>(from)[unit];
}

// Value `i` of a group of 32 at 8 bits: 34 bytes, the scale first.
KIV_BODY float value_q8_0(const uint8_t *group, uint32_t i) {
    const float scale = half_to_float(uint16_t(group[0] | group[1] << 8));
    return float(int8_t(group[2 + i])) * scale;
}

// Value `i` of a group of 32 at 4 bits: 18 bytes, the scale first. The low
// nibbles are values 0 to 15, the high ones 16 to 31.
KIV_BODY float value_q4_0(const uint8_t *group, uint32_t i) {
    const float scale = half_to_float(uint16_t(group[0] | group[1] << 8));
    const uint32_t nibble = group[2 + i % 16] >> (i < 16 ? 0 : 4) & 15;
    return (float(nibble) - 8.0f) * scale;
}

// Values of a row of cold rows, which is also its number of halves.
KIV_BODY uint32_t values_in_row(const Rows &rows) {
    switch (rows.format) {
        case Q8_0: return rows.row_bytes / 34 * 32;
        case Q4_0: return rows.row_bytes / 18 * 32;
        default: return rows.row_bytes / 2;
    }
}

// Writes the `i`-th pair of values of a block into a cache of halves.
KIV_BODY void dequant_pair(const Side &side, const Move &move, uint64_t source,
                           const uint32_t *cells, uint32_t i) {
    const uint32_t per_row = values_in_row(side.rows) / 2;
    const uint32_t row = i / per_row;
    const uint32_t at = i % per_row * 2;
    const uint8_t *from = side.rows.base + source + uint64_t(row) * side.rows.row_bytes;
    uint32_t pair;
    if (side.rows.format == AS_IS) {
        pair = reinterpret_cast<const uint32_t *>(from)[at / 2];
    } else {
        float low, high;
        if (side.rows.format == Q8_0) {
            const uint8_t *group = from + at / 32 * 34;
            low = value_q8_0(group, at % 32);
            high = value_q8_0(group, at % 32 + 1);
        } else {
            const uint8_t *group = from + at / 32 * 18;
            low = value_q4_0(group, at % 32);
            high = value_q4_0(group, at % 32 + 1);
        }
        pair = float_to_half(low) | uint32_t(float_to_half(high)) << 16;
    }
    uint8_t *to = row_in(side.cache, cells[move.cells + row], move.head);
    reinterpret_cast<uint32_t *>(to)[at / 2] = pair;
}

// How a row's values form the pairs that RoPE turns.
enum Pairing : uint32_t {
    // Neighbours: (0, 1), (2, 3), …
    NORM = 0,
    // Value i of the first half with value i of the second.
    NEOX = 1,
};

// Rows of one block and KV head that turn by one delta of position.
struct Turn {
    // Where in the list of cells those of this block begin.
    uint32_t cells;
    uint32_t head;
    // Which row of the table of angles.
    uint32_t angle;
};

static_assert(sizeof(Turn) == 12, "as the host has it");

// Turns the `i`-th pair of a block of K rows, halves. `table`, [angles, n_rot / 2]
// of (cos, sin), comes from the host: a delta may be millions of radians, which
// single precision does not reduce well. Values from `n_rot` on do not turn.
KIV_BODY void rerotate_pair(const Cache &cache, const Turn &turn, const uint32_t *cells,
                            const float *table, uint32_t n_rot, uint32_t pairing, uint32_t i) {
    const uint32_t half = n_rot / 2;
    const uint32_t row = i / half;
    const uint32_t pair = i % half;
    const float *angle = table + 2 * (uint64_t(turn.angle) * half + pair);
    const float cosine = angle[0];
    const float sine = angle[1];
    uint16_t *values =
        reinterpret_cast<uint16_t *>(row_in(cache, cells[turn.cells + row], turn.head));
    uint16_t *a = values + (pairing == NEOX ? pair : 2 * pair);
    uint16_t *b = pairing == NEOX ? a + half : a + 1;
    const float x = half_to_float(*a);
    const float y = half_to_float(*b);
    *a = float_to_half(x * cosine - y * sine);
    *b = float_to_half(x * sine + y * cosine);
}

}  // namespace kiv
