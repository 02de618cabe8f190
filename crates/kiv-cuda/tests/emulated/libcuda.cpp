// A driver without a GPU: the functions of libcuda.so.1 that kiv calls, for
// tests/driver.rs.
//
// - Streams run as late as they can: when the host waits for them, or something that it
//   waits for does. Copies read their source only then, if it is page-locked.
// - Kernels are those of kernels/*.cu, whole: blocks and threads as they are launched, every
//   thread a fiber that runs from barrier to barrier.
// - Page-locked memory is elsewhere for the device than for the host.
// - Whatever a driver may punish ends the program: memory that is freed while something may
//   use it, copies that leave their memory, handles of nothing, calls without a context,
//   things left behind.
//
// EMULATED_PINNED: bytes that may be page-locked. EMULATED_FAULT: "no-device" or "old".
// EMULATED_SHARED: several devices of the program are one GPU, each of which waits for its own
// work alone before it frees memory.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "threads.hpp"

namespace {

// ---- Streams and events.

struct Point;

struct Op {
    std::function<void()> run;
    std::shared_ptr<Point> after;
    std::shared_ptr<Point> marks;
};

struct Stream {
    std::deque<Op> ops;
};

// Where an event was recorded. Recording it again makes another one: who was told to wait
// waits for the one that there was then.
struct Point {
    Stream *stream;
    bool reached = false;
    uint64_t time = 0;
};

struct Event {
    std::shared_ptr<Point> point;
};

uint64_t now;
std::map<Stream *, std::unique_ptr<Stream>> streams;
std::map<Event *, std::unique_ptr<Event>> events;

void run_one(Stream *stream);

void reach(Point &point) {
    while (!point.reached) {
        run_one(point.stream);
    }
}

void run_one(Stream *stream) {
    Op op = std::move(stream->ops.front());
    stream->ops.pop_front();
    now += 1;
    if (op.after) {
        reach(*op.after);
    }
    if (op.run) {
        op.run();
    }
    if (op.marks) {
        op.marks->reached = true;
        op.marks->time = now;
    }
}

Stream *stream_of(void *raw) {
    if (!streams.count(static_cast<Stream *>(raw))) {
        die("no such stream");
    }
    return static_cast<Stream *>(raw);
}

Event *event_of(void *raw) {
    auto found = events.find(static_cast<Event *>(raw));
    if (found == events.end()) {
        die("no such event");
    }
    return found->first;
}

const std::shared_ptr<Point> &point_of(void *raw) {
    const std::shared_ptr<Point> &point = event_of(raw)->point;
    if (!point) {
        die("an event that nobody has recorded");
    }
    return point;
}

// ---- Memory.

struct Memory {
    size_t bytes;
    // The host's view of page-locked memory; null for the device's.
    char *host;
    std::vector<char> own;
};

// By address for the device.
std::map<uint64_t, Memory> memories;
size_t pinned;

void check_device(uint64_t at, size_t bytes) {
    auto next = memories.upper_bound(at);
    if (next == memories.begin()) {
        die("no memory at %llx", (unsigned long long)at);
    }
    auto &[base, memory] = *--next;
    if (memory.host || at + bytes > base + memory.bytes) {
        die("a copy leaves its memory");
    }
}

// Where page-locked memory of the host is for the device; 0 if it is not that.
uint64_t mapped(const void *host, size_t bytes) {
    const char *at = static_cast<const char *>(host);
    for (auto &[base, memory] : memories) {
        if (memory.host && at >= memory.host && at < memory.host + memory.bytes) {
            if (at + bytes > memory.host + memory.bytes) {
                die("a copy leaves its page-locked memory");
            }
            return base + uint64_t(at - memory.host);
        }
    }
    return 0;
}

void check_idle(const char *what) {
    // A driver waits itself for what others do who share the context.
    if (getenv("EMULATED_SHARED")) {
        for (auto &[raw, stream] : streams) {
            while (!stream->ops.empty()) {
                run_one(raw);
            }
        }
        return;
    }
    for (auto &[raw, stream] : streams) {
        for (const Op &op : stream->ops) {
            if (op.run) {
                die("%s while work is under way", what);
            }
        }
    }
}

// ---- Contexts and modules.

int retained;
bool initialized;
thread_local bool current;
int modules;

const char *fault() {
    const char *name = getenv("EMULATED_FAULT");
    return name ? name : "";
}

void check_current() {
    if (!current || retained == 0) {
        die("a call without a context");
    }
}

struct AtExit {
    ~AtExit() {
        if (retained || modules || !memories.empty() || !streams.empty() || !events.empty()) {
            die("left behind: %d contexts, %d modules, %zu memories, %zu streams, %zu events",
                retained, modules, memories.size(), streams.size(), events.size());
        }
    }
} at_exit;

int device_context;

}  // namespace

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, OLD_PTX = 222, NOT_READY = 600 };

extern "C" {

int cuInit(unsigned) {
    initialized = true;
    return strcmp(fault(), "no-device") == 0 ? NO_DEVICE : OK;
}

int cuDriverGetVersion(int *version) {
    *version = strcmp(fault(), "old") == 0 ? 10020 : 12040;
    return OK;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_EMULATION";
    return OK;
}

int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

int cuDeviceGet(int *device, int ordinal) {
    if (!initialized) {
        die("cuInit comes first");
    }
    *device = ordinal;
    return ordinal == 0 ? OK : 101;
}

int cuDeviceGetName(char *name, int len, int) {
    snprintf(name, size_t(len), "emulated GPU");
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    retained += 1;
    *context = &device_context;
    return OK;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    retained -= 1;
    return retained < 0 ? INVALID : OK;
}

int cuCtxSetCurrent(void *context) {
    current = context == &device_context;
    return current ? OK : INVALID;
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    check_current();
    *least = 0;
    *greatest = -5;
    return OK;
}

int cuModuleLoadData(void **module, const void *image) {
    check_current();
    if (strcmp(fault(), "old") == 0) {
        return OLD_PTX;
    }
    if (!strstr(static_cast<const char *>(image), ".target sm_")) {
        die("a module that is no PTX");
    }
    modules += 1;
    *module = const_cast<void *>(image);
    return OK;
}

int cuModuleUnload(void *) {
    check_current();
    check_idle("a module is unloaded");
    modules -= 1;
    return OK;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    const std::string entry = std::string(".entry ") + name + "(";
    auto found = KERNELS.find(name);
    if (found == KERNELS.end() || !strstr(static_cast<char *>(module), entry.c_str())) {
        return 500;
    }
    *function = const_cast<Launcher *>(&found->second);
    return OK;
}

int cuStreamCreateWithPriority(void **stream, unsigned flags, int) {
    check_current();
    if (flags != 1) {
        die("a stream that waits for the default stream");
    }
    auto made = std::make_unique<Stream>();
    *stream = made.get();
    streams[made.get()] = std::move(made);
    return OK;
}

int cuStreamDestroy_v2(void *raw) {
    check_current();
    Stream *stream = stream_of(raw);
    while (!stream->ops.empty()) {
        run_one(stream);
    }
    streams.erase(stream);
    return OK;
}

int cuStreamSynchronize(void *raw) {
    check_current();
    Stream *stream = stream_of(raw);
    while (!stream->ops.empty()) {
        run_one(stream);
    }
    return OK;
}

int cuStreamWaitEvent(void *raw, void *raw_event, unsigned) {
    check_current();
    Op op;
    op.after = point_of(raw_event);
    stream_of(raw)->ops.push_back(op);
    return OK;
}

int cuEventCreate(void **event, unsigned flags) {
    check_current();
    if (flags != 0) {
        die("an event without time");
    }
    auto made = std::make_unique<Event>();
    *event = made.get();
    events[made.get()] = std::move(made);
    return OK;
}

int cuEventRecord(void *raw_event, void *raw) {
    check_current();
    Stream *stream = stream_of(raw);
    Op op;
    op.marks = std::make_shared<Point>(Point{stream});
    event_of(raw_event)->point = op.marks;
    stream->ops.push_back(op);
    return OK;
}

int cuEventDestroy_v2(void *raw) {
    check_current();
    events.erase(event_of(raw));
    return OK;
}

int cuEventQuery(void *raw) {
    check_current();
    return point_of(raw)->reached ? OK : NOT_READY;
}

int cuEventSynchronize(void *raw) {
    check_current();
    reach(*point_of(raw));
    return OK;
}

int cuEventElapsedTime(float *ms, void *from, void *to) {
    check_current();
    const Point &first = *point_of(from), &second = *point_of(to);
    if (!first.reached || !second.reached) {
        return NOT_READY;
    }
    *ms = float(int64_t(second.time) - int64_t(first.time));
    return OK;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    check_current();
    if (bytes == 0) {
        return INVALID;
    }
    Memory memory{bytes, nullptr, std::vector<char>(bytes + 256, char(0xcd))};
    const uint64_t begin = (uint64_t(memory.own.data()) + 255) / 256 * 256;
    memories.emplace(begin, std::move(memory));
    *address = begin;
    return OK;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    check_current();
    *total = size_t(1) << 30;
    *free = *total;
    for (const auto &[base, memory] : memories) {
        *free -= memory.host || memory.bytes > *free ? 0 : memory.bytes;
    }
    return OK;
}

int cuMemFree_v2(uint64_t address) {
    check_current();
    check_idle("device memory is freed");
    auto found = memories.find(address);
    if (found == memories.end() || found->second.host) {
        die("memory is freed that is none");
    }
    memories.erase(found);
    return OK;
}

int cuMemHostAlloc(void **host, size_t bytes, unsigned flags) {
    check_current();
    if (bytes == 0 || (flags & 2) == 0) {
        return INVALID;
    }
    const char *limit = getenv("EMULATED_PINNED");
    if (limit && pinned + bytes > size_t(atoll(limit))) {
        return OUT_OF_MEMORY;
    }
    const int file = memfd_create("pinned", 0);
    const int rights = PROT_READ | PROT_WRITE;
    if (file < 0 || ftruncate(file, off_t(bytes)) != 0) {
        die("no memory file");
    }
    void *view = mmap(nullptr, bytes, rights, MAP_SHARED, file, 0);
    void *device = mmap(nullptr, bytes, rights, MAP_SHARED, file, 0);
    close(file);
    if (view == MAP_FAILED || device == MAP_FAILED) {
        die("memory cannot be mapped");
    }
    // As the driver's pages: nobody has cleared them.
    memset(view, 0xcd, bytes);
    pinned += bytes;
    memories.emplace(uint64_t(device), Memory{bytes, static_cast<char *>(view), {}});
    *host = view;
    return OK;
}

int cuMemHostGetDevicePointer_v2(uint64_t *address, void *host, unsigned) {
    check_current();
    *address = mapped(host, 1);
    return *address ? OK : INVALID;
}

int cuMemFreeHost(void *host) {
    check_current();
    check_idle("page-locked memory is freed");
    const uint64_t address = mapped(host, 1);
    auto found = memories.find(address);
    if (found == memories.end() || found->second.host != host) {
        die("page-locked memory is freed that is none");
    }
    munmap(host, found->second.bytes);
    munmap(reinterpret_cast<void *>(address), found->second.bytes);
    pinned -= found->second.bytes;
    memories.erase(found);
    return OK;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *raw) {
    check_current();
    check_device(to, bytes);
    Op op;
    if (mapped(from, bytes)) {
        op.run = [=] { memcpy(reinterpret_cast<void *>(to), from, bytes); };
    } else {
        // Pageable memory is read before the call returns.
        const char *begin = static_cast<const char *>(from);
        std::vector<char> copy(begin, begin + bytes);
        op.run = [=] { memcpy(reinterpret_cast<void *>(to), copy.data(), bytes); };
    }
    stream_of(raw)->ops.push_back(op);
    return OK;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *raw) {
    check_current();
    check_device(to, bytes);
    check_device(from, bytes);
    Op op;
    op.run = [=] { memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes); };
    stream_of(raw)->ops.push_back(op);
    return OK;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *raw) {
    check_current();
    check_device(from, bytes);
    Op op;
    op.run = [=] { memcpy(to, reinterpret_cast<void *>(from), bytes); };
    stream_of(raw)->ops.push_back(op);
    return OK;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads,
                   unsigned threads_y, unsigned threads_z, unsigned shared, void *raw,
                   void **params, void **extra) {
    check_current();
    if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads > 1024 ||
        threads_y != 1 || threads_z != 1 || shared > sizeof room || extra) {
        return INVALID;
    }
    const std::function<void()> kernel = (*static_cast<Launcher *>(function))(params);
    Op op;
    op.run = [=] {
        gridDim = {x, y, z};
        blockDim = {threads, 1, 1};
        for (uint32_t k = 0; k < z; k++) {
            for (uint32_t j = 0; j < y; j++) {
                for (uint32_t i = 0; i < x; i++) {
                    blockIdx = {i, j, k};
                    // What an earlier block left must not matter.
                    memset(room, 0xcd, sizeof room);
                    run_block(kernel);
                }
            }
        }
    };
    stream_of(raw)->ops.push_back(op);
    return OK;
}

}  // extern "C"
