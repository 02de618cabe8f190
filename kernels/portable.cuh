// What the bodies of all kernels share, for nvcc and for a plain C++ compiler.
//
// A body is what one thread does between two barriers. It is compiled twice: by
// nvcc into a kernel, and by the host's compiler into the program that tests
// compare with the CPU references (kiv-cuda's tests/bodies.cpp). Neither may fuse a product
// and a sum on its own (-fmad=false, -ffp-contract=off), or bits would differ.

#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define KIV_BODY __host__ __device__ __forceinline__
#else
#define KIV_BODY inline
#endif

#if defined(__CUDA_ARCH__)
#include <cuda_fp16.h>
#else
#include <math.h>
#include <string.h>
#endif

namespace kiv {

// `a * b + c`, rounded once.
KIV_BODY float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return fmaf(a, b, c);
#endif
}

// The bits of a float.
KIV_BODY uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

// The float that has these bits.
KIV_BODY float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Half precision to single: exact.
KIV_BODY float half_to_float(uint16_t half) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(half));
#else
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 31;
    const uint32_t fraction = half & 1023;
    if (exponent == 31) {
        return float_of(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        // Zero, or a multiple of 2^-24.
        const float value = float(fraction) * 5.9604644775390625e-8f;
        return float_of(sign | bits_of(value));
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

// Single precision to half, to nearest, ties to even. Of any NaN a GPU makes the same one; the
// CPU references keep its sign, and some its bits.
KIV_BODY uint16_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t bits = bits_of(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0x7fff;
    }
    // From 65520 on the nearest half is infinity.
    if (magnitude >= 0x477ff000) {
        return uint16_t(sign | 0x7c00);
    }
    uint32_t half, rest, middle;
    if (magnitude >= 0x38800000) {
        half = (magnitude >> 13) - (112 << 10);
        rest = magnitude & 0x1fff;
        middle = 0x1000;
    } else {
        // A multiple of 2^-24, or nothing.
        const uint32_t exponent = magnitude >> 23;
        if (exponent < 102) {
            return uint16_t(sign);
        }
        const uint32_t shift = 126 - exponent;
        const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000;
        half = fraction >> shift;
        rest = fraction & ((1u << shift) - 1);
        middle = 1u << (shift - 1);
    }
    half += rest > middle || (rest == middle && (half & 1));
    return uint16_t(sign | half);
#endif
}

// Adds to a counter that other threads of the block add to as well.
KIV_BODY void count(uint32_t *counter) {
#if defined(__CUDA_ARCH__)
    atomicAdd(counter, 1u);
#else
    *counter += 1;
#endif
}

// Says yes or no, all threads of a warp together: each one's bit of a word that is theirs.
KIV_BODY void vote(uint32_t *word, uint32_t lane, bool yes) {
#if defined(__CUDA_ARCH__)
    const uint32_t all = __ballot_sync(0xffffffffu, yes);
    if (lane == 0) {
        *word = all;
    }
#else
    *word = (*word & ~(1u << lane)) | uint32_t(yes) << lane;
#endif
}

// Bytes 1 and 3 of a word, in its halves.
KIV_BODY uint32_t odd_bytes(uint32_t word) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(word, 0, 0x4341);
#else
    return word >> 8 & 0x00ff00ff;
#endif
}

// How many bits of a word are set.
KIV_BODY uint32_t bits_in(uint32_t word) {
#if defined(__CUDA_ARCH__)
    return uint32_t(__popc(word));
#else
    return uint32_t(__builtin_popcount(word));
#endif
}

// Which one is the lowest, of a word that is not 0.
KIV_BODY uint32_t lowest_bit(uint32_t word) {
#if defined(__CUDA_ARCH__)
    return uint32_t(__ffs(word)) - 1;
#else
    return uint32_t(__builtin_ctz(word));
#endif
}

}  // namespace kiv
