// The best of a tile of scores, by one block of threads.
//
// Of equal scores the one that comes first is taken, and what is taken keeps its
// order, so that the best of many tiles' best are the best of all: the same
// selection is run again over what the tiles gave.
//
// A score is an unsigned number of 2 or 4 bytes. The threshold is found byte by
// byte, highest first, from a histogram of those that agree with it so far.
// Then scores are marked by bits, in chunks: neighbours read neighbours, and a
// thread that has a word of bits still knows their order.

#pragma once

#include "portable.cuh"

namespace kiv {

// Threads of a block that selects.
constexpr uint32_t SELECT_THREADS = 256;

// Threads of a warp, and so bits of a word that it votes on.
constexpr uint32_t WARP = 32;

// A number of each thread's, or of each of 256 things. Sums of runs of them make two short walks
// of a long one.
constexpr uint32_t RUN = 16;
struct Counts {
    uint32_t each[SELECT_THREADS];
    uint32_t runs[SELECT_THREADS / RUN];
};
static_assert(SELECT_THREADS == RUN * RUN, "as many runs as there are in one");

// The first RUN threads: a run each.
KIV_BODY void sum_runs(Counts &counts, uint32_t thread) {
    if (thread >= RUN) {
        return;
    }
    uint32_t sum = 0;
    for (uint32_t i = 0; i < RUN; i++) {
        // Each begins elsewhere in its run: no two read from one bank of memory.
        sum += counts.each[thread * RUN + (thread + i) % RUN];
    }
    counts.runs[thread] = sum;
}

// Two of them, by threads of different warps.
KIV_BODY void sum_both(Counts &a, Counts &b, uint32_t thread) {
    sum_runs(a, thread);
    if (thread >= WARP) {
        sum_runs(b, thread - WARP);
    }
}

// What comes before a thread's; all there is, if `thread` is one more than there are.
KIV_BODY uint32_t sum_before(const Counts &counts, uint32_t thread) {
    uint32_t sum = 0;
    for (uint32_t run = 0; run < thread / RUN; run++) {
        sum += counts.runs[run];
    }
    for (uint32_t i = thread / RUN * RUN; i < thread; i++) {
        sum += counts.each[i];
    }
    return sum;
}

// Which number of a run has the `wanted`-th, from the last one down; the first, if there are
// not so many. `wanted` becomes how many of that are. There is no way out of the loop, so that
// reads need not wait for each other.
KIV_BODY uint32_t walk_down(const uint32_t *run, uint32_t &wanted) {
    uint32_t at = RUN - 1;
    for (uint32_t i = RUN - 1; i > 0; i--) {
        const uint32_t here = run[i];
        const bool goes_on = at == i && here < wanted;
        wanted -= goes_on ? here : 0;
        at -= goes_on;
    }
    return at;
}

// Scores that are taken at a time: a word of bits for each thread.
constexpr uint32_t CHUNK = SELECT_THREADS * WARP;

// What the threads of a block share.
struct SelectShared {
    // Of each byte, the lowest first: none has to be cleared in between.
    Counts histograms[4];
    // Which scores of a chunk are above the threshold, and equal to it.
    uint32_t is_above[SELECT_THREADS];
    uint32_t is_equal[SELECT_THREADS];
    Counts above, equal;
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

// A score as it is compared; 0, below all others, of what is no number: a GPU's NaN has other
// bits than a CPU's.
KIV_BODY uint32_t entered(float score) { return score == score ? ordered(score) : 0; }

// Things of a thread: a stretch, so that positions stay in order.
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
    for (Counts &histogram : shared.histograms) {
        histogram.each[thread] = 0;
    }
    if (thread == 0) {
        shared.threshold = 0;
        shared.wanted = k;
    }
}

// Scores of a thread that are on their way from memory together.
constexpr uint32_t AT_ONCE = 8;

// Those from `i` on, strided: neighbours read neighbours. 0 beyond the last.
template <typename Scores>
KIV_BODY void read_some(uint32_t *some, const Scores &scores, uint32_t n, uint32_t i) {
    for (uint32_t j = 0; j < AT_ONCE; j++, i += SELECT_THREADS) {
        some[j] = i < n ? scores[i] : 0;
    }
}

// Counts by the byte at `shift` the scores whose higher bytes are the threshold's.
// `Scores` is whatever has them by their places.
template <typename Scores>
KIV_BODY void select_count(SelectShared &shared, uint32_t thread, const Scores &scores, uint32_t n,
                           uint32_t shift) {
    uint32_t *histogram = shared.histograms[shift / 8].each;
    const uint32_t threshold = shared.threshold, higher = ~0u << shift << 8;
    for (uint32_t first = thread; first < n; first += AT_ONCE * SELECT_THREADS) {
        uint32_t some[AT_ONCE];
        read_some(some, scores, n, first);
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const bool agrees = ((some[j] ^ threshold) & higher) == 0;
            if (first + j * SELECT_THREADS < n && agrees) {
                count(&histogram[some[j] >> shift & 255]);
            }
        }
    }
}

// Some threads: how many scores there are of each 16 bytes.
KIV_BODY void select_sum_bytes(SelectShared &shared, uint32_t thread, uint32_t shift) {
    sum_runs(shared.histograms[shift / 8], thread);
}

// Thread 0: the threshold's byte at `shift`. There are at least `wanted` scores.
KIV_BODY void select_narrow(SelectShared &shared, uint32_t thread, uint32_t shift) {
    if (thread != 0) {
        return;
    }
    const Counts &histogram = shared.histograms[shift / 8];
    uint32_t wanted = shared.wanted;
    const uint32_t run = walk_down(histogram.runs, wanted);
    const uint32_t byte = run * RUN + walk_down(histogram.each + run * RUN, wanted);
    shared.wanted = wanted;
    shared.threshold |= byte << shift;
}

// Marks what is above the threshold and what is equal, among `n` scores, a chunk at most.
template <typename Score>
KIV_BODY void select_mark(SelectShared &shared, uint32_t thread, const Score *scores, uint32_t n) {
    const uint32_t threshold = shared.threshold, lane = thread % WARP;
    for (uint32_t first = thread; first < CHUNK; first += AT_ONCE * SELECT_THREADS) {
        uint32_t some[AT_ONCE];
        read_some(some, scores, n, first);
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t i = first + j * SELECT_THREADS;
            vote(&shared.is_above[i / WARP], lane, i < n && some[j] > threshold);
            vote(&shared.is_equal[i / WARP], lane, i < n && some[j] == threshold);
        }
    }
}

// Each thread: how many of its word.
KIV_BODY void select_tally(SelectShared &shared, uint32_t thread) {
    shared.above.each[thread] = bits_in(shared.is_above[thread]);
    shared.equal.each[thread] = bits_in(shared.is_equal[thread]);
}

// Some threads: how many of each 16 words.
KIV_BODY void select_sum(SelectShared &shared, uint32_t thread) {
    sum_both(shared.above, shared.equal, thread);
}

// Scores above and equal to the threshold that were in chunks before.
struct Before {
    uint32_t above, equal;
};

// Those and this chunk's.
KIV_BODY Before select_passed(const SelectShared &shared, Before before) {
    return {before.above + sum_before(shared.above, SELECT_THREADS),
            before.equal + sum_before(shared.equal, SELECT_THREADS)};
}

// Writes what is taken of the thread's word: scores, and what they are
// called, which is `names[i]`, or `first + i` without names.
template <typename Score>
KIV_BODY void select_take(const SelectShared &shared, uint32_t thread, const Score *scores,
                          const uint32_t *names, uint32_t first, Before before, Score *out_scores,
                          uint32_t *out_names) {
    const uint32_t wanted = shared.wanted, tied = shared.is_equal[thread];
    uint32_t equal = before.equal + sum_before(shared.equal, thread);
    uint32_t at = before.above + sum_before(shared.above, thread);
    at += equal < wanted ? equal : wanted;
    // Where everything is equal, no thread goes through all of that in vain.
    uint32_t left = shared.is_above[thread] | (equal < wanted ? tied : 0);
    for (; left; left &= left - 1) {
        const uint32_t bit = lowest_bit(left), i = thread * WARP + bit;
        const bool is_tied = tied >> bit & 1;
        if (!is_tied || equal < wanted) {
            out_scores[at] = scores[i];
            out_names[at] = names ? names[i] : first + i;
            at += 1;
        }
        equal += is_tied;
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
        select_sum_bytes(shared, thread, uint32_t(shift));
        __syncthreads();
        select_narrow(shared, thread, uint32_t(shift));
        __syncthreads();
    }
}

// All of it. Afterwards all threads have written what they take.
template <typename Score>
__device__ void select_tile(SelectShared &shared, const Score *scores, const uint32_t *names,
                            uint32_t first, uint32_t n, uint32_t k, Score *out_scores,
                            uint32_t *out_names) {
    const uint32_t thread = threadIdx.x;
    select_threshold<int(sizeof(Score))>(shared, scores, n, k);
    Before before = {0, 0};
    for (uint32_t from = 0; from < n; from += CHUNK) {
        select_mark(shared, thread, scores + from, n - from < CHUNK ? n - from : CHUNK);
        __syncthreads();
        select_tally(shared, thread);
        __syncthreads();
        select_sum(shared, thread);
        __syncthreads();
        select_take(shared, thread, scores + from, names ? names + from : nullptr, first + from,
                    before, out_scores, out_names);
        before = select_passed(shared, before);
        __syncthreads();
    }
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
