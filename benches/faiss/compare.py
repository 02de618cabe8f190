#!/usr/bin/env python3
"""Compares kiv-fastscan with Faiss's IndexPQFastScan: same codebooks, same
codes, one thread, inner product. See README.md."""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def synthetic(n, d, n_queries, seed):
    """Gaussian clusters of unequal sizes and widths; queries near keys."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((256, d), dtype=np.float32)
    widths = rng.uniform(0.3, 1.0, (256, 1)).astype(np.float32)
    weights = rng.dirichlet(np.ones(256))
    which = rng.choice(256, n, p=weights)
    keys = rng.standard_normal((n, d), dtype=np.float32)
    keys *= widths[which]
    keys += centers[which]
    queries = keys[rng.choice(n, n_queries)] + 0.5 * rng.standard_normal((n_queries, d), dtype=np.float32)
    return keys, queries


def exact(keys, queries, k):
    """Indices of the true k best keys of each query."""
    best = []
    for query in queries:
        scores = keys @ query
        best.append(np.argpartition(-scores, k - 1)[:k])
    return np.array(best)


def recall(found, truth):
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, truth)]
    return sum(hits) / truth.size


class Kiv:
    """The Rust side, in a process that waits for requests."""

    def __init__(self, program, folder, sizes):
        command = [program, folder, *map(str, sizes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.isa = self.process.stdout.readline().strip()

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the Rust side ended on {request!r}")
        return reply.strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def faiss_single(index, queries, k, distances, ids):
    """Query by query, past numpy's wrapper, whose cost would count as Faiss's."""
    pointers = [
        (faiss.swig_ptr(queries[i]), faiss.swig_ptr(distances[i]), faiss.swig_ptr(ids[i]))
        for i in range(len(queries))
    ]
    start = time.perf_counter_ns()
    for q, d, i in pointers:
        index.search_c(1, q, k, d, i)
    return time.perf_counter_ns() - start


def faiss_batch(index, queries, k, distances, ids):
    start = time.perf_counter_ns()
    index.search_c(len(queries), faiss.swig_ptr(queries), k, faiss.swig_ptr(distances), faiss.swig_ptr(ids))
    return time.perf_counter_ns() - start


def compare(program, keys, queries, m, k, rounds):
    n, d = keys.shape
    n_queries = len(queries)
    index = faiss.IndexPQFastScan(d, m, 4, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(1).choice(n, min(n, 20_000), replace=False)
    index.train(keys[np.sort(sample)])
    index.add(keys)
    packed = index.pq.compute_codes(keys)
    codes = np.empty((n, m), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    truth = exact(keys, queries, k)

    # What a call through Python costs that scans next to nothing.
    empty = faiss.IndexPQFastScan(d, m, 4, faiss.METRIC_INNER_PRODUCT)
    empty.pq = index.pq
    empty.is_trained = True
    empty.add(keys[:32])

    distances = np.empty((n_queries, k), np.float32)
    ids = np.empty((n_queries, k), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        codes.tofile(folder / "codes.u8")
        faiss.vector_to_array(index.pq.centroids).tofile(folder / "codebooks.f32")
        queries.tofile(folder / "queries.f32")
        kiv = Kiv(program, folder, (m, n, d, n_queries, k))

        runs = {
            "call": lambda: faiss_single(empty, queries, k, distances.copy(), ids.copy()),
            "faiss": lambda: faiss_single(index, queries, k, distances, ids),
            "kiv 255": lambda: int(kiv.ask("single 255")),
            "kiv 127": lambda: int(kiv.ask("single 127")),
            "kiv 63": lambda: int(kiv.ask("single 63")),
            "faiss batch": lambda: faiss_batch(index, queries, k, distances, ids),
            "kiv 255 batch": lambda: int(kiv.ask("batch 255")),
            "kiv 63 batch": lambda: int(kiv.ask("batch 63")),
        }
        times = {name: [] for name in runs}
        recalls = {}
        for round in range(rounds + 1):
            for name, run in runs.items():
                taken = run() / n_queries / 1e3
                if round > 0:  # the first one warms up
                    times[name].append(taken)
                    continue
                if name.startswith("kiv"):
                    kiv.ask(f"found {folder / 'found'}")
                    found = np.fromfile(folder / "found", np.uint32).reshape(n_queries, k)
                    recalls[name] = recall(found, truth)
                elif name.startswith("faiss"):
                    recalls[name] = recall(ids, truth)
        parts = [[int(x) / n_queries / 1e3 for x in kiv.ask("parts 255").split()] for _ in range(rounds)]
        isa = kiv.isa
        kiv.close()

    print(f"\nd={d} m={m} n={n} k={k} ({isa}), microseconds per query")
    # Ratios are of rounds, so that what slows a round down slows both; `net` is
    # without what a call costs.
    print(f"  {'':14} {'median':>10} {'fastest':>10} {'faiss/x':>8} {'net':>6} {'recall':>7}")
    for name, values in times.items():
        median, least = statistics.median(values), min(values)
        if name == "call":
            print(f"  {'(empty call)':14} {median:10.1f} {least:10.1f}")
            continue
        base = times["faiss batch" if name.endswith("batch") else "faiss"]
        calls = [0] * rounds if name.endswith("batch") else times["call"]
        ratio = statistics.median(b / v for b, v in zip(base, values))
        own = calls if name.startswith("faiss") else [0] * rounds
        net = statistics.median((b - c) / (v - o) for b, c, v, o in zip(base, calls, values, own))
        print(f"  {name:14} {median:10.1f} {least:10.1f} {ratio:8.2f} {net:6.2f} {recalls[name]:7.4f}")
    table, scan, select = (min(p[i] for p in parts) for i in range(3))
    print(f"  kiv 255 is: table {table:.1f}, scan {scan:.1f} ({scan / n * 1e3:.3f} ns per key), top-k {select:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", help="raw f32 file, [n, dim]")
    parser.add_argument("--queries", help="raw f32 file, [n_queries, dim]")
    parser.add_argument("--dim", type=int, default=64, help="dimensions of the files' rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of keys")
    parser.add_argument("--k", type=int, default=100, help="keys to find per query")
    parser.add_argument("--n-queries", type=int, default=60, help="at most so many queries")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--seed", type=int, default=1, help="of synthetic data")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)

    subprocess.run(
        ["cargo", "build", "--release", "--locked", "-p", "kiv-fastscan", "--example", "faiss_side"],
        cwd=ROOT,
        check=True,
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = target / "release" / "examples" / "faiss_side"

    print(f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()})")
    if arguments.keys and arguments.queries:
        shape = (-1, arguments.dim)
        keys = np.fromfile(arguments.keys, np.float32).reshape(shape)
        queries = np.fromfile(arguments.queries, np.float32).reshape(shape)[: arguments.n_queries]
        print(f"keys: {arguments.keys}, {len(keys)} of {arguments.dim} dimensions; {len(queries)} queries")
        d = arguments.dim
        data = [(keys, queries, (32, 64) if d % 64 == 0 and d > 64 else (d // 4, d // 2))]
    elif arguments.keys or arguments.queries:
        parser.error("--keys and --queries go together")
    else:
        print(f"SYNTHETIC data: Gaussian clusters, seed {arguments.seed}")
        n = max(arguments.sizes)
        data = (
            (*synthetic(n, d, arguments.n_queries, arguments.seed), ms)
            for d, ms in ((64, (16, 32)), (128, (64,)))
        )
    for keys, queries, ms in data:
        sizes = [n for n in arguments.sizes if n <= len(keys)] or [len(keys)]
        for m in ms:
            for n in sizes:
                compare(program, keys[:n], queries, m, min(arguments.k, n), arguments.rounds)


if __name__ == "__main__":
    main()
