// The language that kernels are written in, and a GPU's threads: kernels.cu as they are,
// for libcuda.cpp.

#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

// ---- The language that kernels are written in.

struct Dim3 {
    uint32_t x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

static Dim3 gridDim, blockDim, blockIdx, threadIdx;

static void barrier();

#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
// One block runs at a time, so that this is shared by all of its threads.
#define __shared__ thread_local
#define __syncthreads barrier
#define __syncwarp barrier

extern "C" {
thread_local uint4 room[48 * 1024 / 16];
}

#include "coarse.cu"
#include "dequant_scatter.cu"
#include "index.cu"
#include "pq_scan.cu"
#include "rerotate.cu"
#include "scatter.cu"

namespace {

[[noreturn]] void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulated driver: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(9);
}

// ---- Threads of a block.

constexpr size_t STACK = 64 * 1024;

// Contexts are made once; from then on jumps take turns, which ask the kernel for nothing.
struct Fiber {
    jmp_buf place;
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool over = true;
};

std::vector<std::unique_ptr<Fiber>> fibers;
jmp_buf scheduler;
size_t running;
const std::function<void()> *body;

// To whoever runs the block.
void leave() {
    if (_setjmp(fibers[running]->place) == 0) {
        _longjmp(scheduler, 1);
    }
}

void fiber_main() {
    for (;;) {
        leave();
        (*body)();
        fibers[running]->over = true;
    }
}

void enter(Fiber &fiber) {
    if (_setjmp(scheduler) == 0) {
        _longjmp(fiber.place, 1);
    }
}

void add_fiber() {
    running = fibers.size();
    fibers.push_back(std::make_unique<Fiber>());
    Fiber &fiber = *fibers.back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    if (_setjmp(scheduler) == 0) {
        setcontext(&fiber.context);
    }
}

// All threads of a block come to the same barriers in the same order, or end before.
void run_block(const std::function<void()> &kernel) {
    body = &kernel;
    const size_t n = blockDim.x;
    while (fibers.size() < n) {
        add_fiber();
    }
    for (size_t i = 0; i < n; i++) {
        fibers[i]->over = false;
    }
    for (bool some = true; some;) {
        some = false;
        // Last thread first: whoever counts on the first one's work needs a barrier.
        for (size_t i = n; i-- > 0;) {
            if (!fibers[i]->over) {
                some = true;
                running = i;
                threadIdx = {uint32_t(i), 0, 0};
                enter(*fibers[i]);
            }
        }
    }
}

using Launcher = std::function<std::function<void()>(void **)>;

template <typename... P>
Launcher launcher(void (*kernel)(P...)) {
    return [kernel](void **params) {
        std::tuple<std::decay_t<P>...> values;
        size_t i = 0;
        std::apply([&](auto &...value) { (memcpy(&value, params[i++], sizeof value), ...); }, values);
        return std::function<void()>([kernel, values] { std::apply(kernel, values); });
    };
}

const std::map<std::string, Launcher> KERNELS = {
    {"kiv_scatter_16", launcher(kiv_scatter_16)},
    {"kiv_scatter_8", launcher(kiv_scatter_8)},
    {"kiv_scatter_4", launcher(kiv_scatter_4)},
    {"kiv_scatter_2", launcher(kiv_scatter_2)},
    {"kiv_dequant_scatter", launcher(kiv_dequant_scatter)},
    {"kiv_rerotate", launcher(kiv_rerotate)},
    {"kiv_pq_scan", launcher(kiv_pq_scan)},
    {"kiv_top_sums", launcher(kiv_top_sums)},
    {"kiv_coarse", launcher(kiv_coarse)},
    {"kiv_top_lists", launcher(kiv_top_lists)},
    {"kiv_index_clear", launcher(kiv::kiv_index_clear)},
    {"kiv_index_tables", launcher(kiv::kiv_index_tables)},
    {"kiv_index_lists", launcher(kiv::kiv_index_lists)},
    {"kiv_index_open", launcher(kiv::kiv_index_open)},
    {"kiv_index_keys", launcher(kiv::kiv_index_keys)},
    {"kiv_index_least", launcher(kiv::kiv_index_least)},
    {"kiv_index_newest", launcher(kiv::kiv_index_newest)},
    {"kiv_index_sample", launcher(kiv::kiv_index_sample)},
    {"kiv_index_outliers", launcher(kiv::kiv_index_outliers)},
};

}  // namespace

static void barrier() { leave(); }
