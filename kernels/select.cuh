// The best of a tile of scores, by one block of threads.
//
// Of equal scores the one that comes first is taken, and what is taken keeps its
// order, so that the best of many tiles' best are the best of all: the same
// selection is run again over what the tiles gave.
//
// A score is an unsigned number of 2 or 4 bytes. The threshold is found byte by
// byte, highest first, from a histogram of those that agree with it so far.

#pragma once

#include "portable.cuh"

namespace kiv {

// Threads of a block that selects.
constexpr uint32_t SELECT_THREADS = 256;

// What the threads of a block share.
struct SelectShared {
    uint32_t histogram[256];
    // Scores above and equal to the threshold that threads before this one have.
    uint32_t above[SELECT_THREADS + 1];
    uint32_t equal[SELECT_THREADS + 1];
    // The threshold so far: its high bytes.
    uint32_t threshold;
    // How many scores equal to the threshold are still wanted.
    uint32_t wanted;
};

// A float's bits as an unsigned number that is ordered as floats are (with -0
// below 0, NaNs outermost).
KIV_BODY uint32_t ordered(float value) {
    const uint32_t bits = bits_of(value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// What `ordered` made of a float, back.
KIV_BODY float unordered(uint32_t number) {
    return float_of(number >> 31 ? number & 0x7fffffffu : ~number);
}

// Scores of a thread: a stretch, so that positions stay in order.
struct Stretch {
    uint32_t from, to;
};

KIV_BODY Stretch stretch_of(uint32_t n, uint32_t thread) {
    const uint32_t each = (n + SELECT_THREADS - 1) / SELECT_THREADS;
    const uint32_t from = thread * each < n ? thread * each : n;
    const uint32_t to = n - from < each ? n : from + each;
    return {from, to};
}

// First of all; thread 0 says what is wanted.
KIV_BODY void select_begin(SelectShared &shared, uint32_t thread, uint32_t k) {
    shared.histogram[thread] = 0;
    if (thread == 0) {
        shared.threshold = 0;
        shared.wanted = k;
    }
}

// Counts by the byte at `shift` the scores whose higher bytes are the threshold's.
// `Scores` is whatever has them by their places.
template <typename Scores>
KIV_BODY void select_count(SelectShared &shared, uint32_t thread, const Scores &scores, uint32_t n,
                           uint32_t shift) {
    // Strided: neighbours read neighbours.
    for (uint32_t i = thread; i < n; i += SELECT_THREADS) {
        const uint64_t score = scores[i];
        if (score >> (shift + 8) == uint64_t(shared.threshold) >> (shift + 8)) {
            count(&shared.histogram[score >> shift & 255]);
        }
    }
}

// Thread 0: the threshold's byte at `shift`. There are at least `wanted` scores.
KIV_BODY void select_narrow(SelectShared &shared, uint32_t thread, uint32_t shift) {
    if (thread != 0) {
        return;
    }
    uint32_t byte = 255;
    while (byte > 0 && shared.histogram[byte] < shared.wanted) {
        shared.wanted -= shared.histogram[byte];
        byte -= 1;
    }
    shared.threshold |= byte << shift;
}

KIV_BODY void select_clear(SelectShared &shared, uint32_t thread) { shared.histogram[thread] = 0; }

// Counts what the thread's stretch has.
template <typename Score>
KIV_BODY void select_tally(SelectShared &shared, uint32_t thread, const Score *scores, uint32_t n) {
    const Stretch mine = stretch_of(n, thread);
    uint32_t above = 0, equal = 0;
    for (uint32_t i = mine.from; i < mine.to; i++) {
        above += scores[i] > shared.threshold;
        equal += scores[i] == shared.threshold;
    }
    shared.above[thread + 1] = above;
    shared.equal[thread + 1] = equal;
}

// Thread 0: how many come before each stretch.
KIV_BODY void select_sum(SelectShared &shared, uint32_t thread) {
    if (thread != 0) {
        return;
    }
    shared.above[0] = shared.equal[0] = 0;
    for (uint32_t i = 0; i < SELECT_THREADS; i++) {
        shared.above[i + 1] += shared.above[i];
        shared.equal[i + 1] += shared.equal[i];
    }
}

// Writes what is taken from the thread's stretch: scores, and what they are
// called, which is `names[i]`, or `first + i` without names.
template <typename Score>
KIV_BODY void select_take(const SelectShared &shared, uint32_t thread, const Score *scores,
                          const uint32_t *names, uint32_t first, uint32_t n, Score *out_scores,
                          uint32_t *out_names) {
    const Stretch mine = stretch_of(n, thread);
    uint32_t equal = shared.equal[thread];
    uint32_t at = shared.above[thread] + (equal < shared.wanted ? equal : shared.wanted);
    for (uint32_t i = mine.from; i < mine.to; i++) {
        const Score score = scores[i];
        const bool tied = score == shared.threshold;
        if (score > shared.threshold || (tied && equal < shared.wanted)) {
            out_scores[at] = score;
            out_names[at] = names ? names[i] : first + i;
            at += 1;
        }
        equal += tied;
    }
}

#if defined(__CUDACC__)
// The threshold. `n` and `k` are at least 1, `k` is at most `n`.
template <int Bytes, typename Scores>
__device__ void select_threshold(SelectShared &shared, const Scores &scores, uint32_t n,
                                 uint32_t k) {
    const uint32_t thread = threadIdx.x;
    select_begin(shared, thread, k);
    __syncthreads();
    for (int shift = 8 * Bytes - 8; shift >= 0; shift -= 8) {
        select_count(shared, thread, scores, n, uint32_t(shift));
        __syncthreads();
        select_narrow(shared, thread, uint32_t(shift));
        __syncthreads();
        select_clear(shared, thread);
        __syncthreads();
    }
}

// All of it.
template <typename Score>
__device__ void select_tile(SelectShared &shared, const Score *scores, const uint32_t *names,
                            uint32_t first, uint32_t n, uint32_t k, Score *out_scores,
                            uint32_t *out_names) {
    const uint32_t thread = threadIdx.x;
    select_threshold<int(sizeof(Score))>(shared, scores, n, k);
    select_tally(shared, thread, scores, n);
    __syncthreads();
    select_sum(shared, thread);
    __syncthreads();
    select_take(shared, thread, scores, names, first, n, out_scores, out_names);
}

// One tile of one query's scores: block (tile, query). Scores (and names) are
// `n` of each row of `row_stride`: sums of a scan have those of keys that only
// fill up the last group. Every tile but the last is full, so outputs,
// [n_queries, n_out], have no gaps.
template <typename Score>
__device__ void select_tiles(const Score *scores, const uint32_t *names, uint32_t n,
                             uint32_t row_stride, uint32_t tile, uint32_t k, uint32_t n_out,
                             Score *out_scores, uint32_t *out_names) {
    __shared__ SelectShared shared;
    const uint64_t row = blockIdx.y;
    const uint32_t first = blockIdx.x * tile;
    const uint32_t here = n - first < tile ? n - first : tile;
    const uint64_t out = row * n_out + uint64_t(blockIdx.x) * (k < tile ? k : tile);
    select_tile(shared, scores + row * row_stride + first,
                names ? names + row * row_stride + first : nullptr, first, here,
                k < here ? k : here, out_scores + out, out_names + out);
}
#endif

}  // namespace kiv
