"""kiv's index next to Faiss's IndexIVFPQFastScan: attention mass found, and time.

Keys and queries are captured from a model (see README.md). For every layer and KV
head, of all keys: the softmax of each query of the group, summed by blocks of 32; the
blocks that an index names hold `found` times what the best 64 blocks hold. Faiss
returns the 2048 best keys of each query, as kiv does; both sides turn their scores
into shares of the softmax, and take the 64 blocks with the most. One thread each.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from pathlib import Path

import faiss
import numpy as np

BLOCK, BUDGET, KEPT = 32, 2048, 2048


def rows(path: Path, dim: int) -> np.ndarray:
    return np.fromfile(path, dtype=np.float32).reshape(-1, dim)


def shares(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def by_block(ids: np.ndarray, weights: np.ndarray, n_blocks: int) -> np.ndarray:
    kept = ids >= 0
    return np.bincount(ids[kept] // BLOCK, weights=weights[kept], minlength=n_blocks)


def best(masses: np.ndarray) -> np.ndarray:
    return np.argpartition(masses, -(BUDGET // BLOCK))[-(BUDGET // BLOCK) :]


def head(args: argparse.Namespace, layer: int, number: int, results: dict) -> bool:
    path = args.capture / f"keys.{layer}.{number}.f32"
    if not path.exists():
        return False
    keys = rows(path, args.dim)
    keys = np.ascontiguousarray(keys[: min(args.keys, len(keys)) // BLOCK * BLOCK])
    asked = rows(args.capture / f"asked.{layer}.{number}.f32", args.dim)
    asked = asked.reshape(-1, args.group, args.dim) / np.float32(np.sqrt(args.dim))
    picked = [asked[i * len(asked) // args.queries] for i in range(args.queries)]
    n_blocks = len(keys) // BLOCK
    truth = [shares(q @ keys.T).sum(axis=0).reshape(n_blocks, BLOCK).sum(axis=1) for q in picked]
    exact = sum(mass[best(mass)].sum() for mass in truth)
    quantizer = faiss.IndexFlatIP(args.dim)
    metric = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFPQFastScan(quantizer, args.dim, args.lists, args.m, 4, metric)
    index.train(keys)
    index.add(keys)
    for nprobe in args.nprobe:
        index.nprobe = nprobe
        found, spent = 0.0, []
        for q, mass in zip(picked, truth):
            for _ in range(3):
                began = time.perf_counter()
                scores, ids = index.search(q, KEPT)
                spent.append(time.perf_counter() - began)
            weights = shares(np.where(ids >= 0, scores, -np.inf))
            found += mass[best(by_block(ids, weights, n_blocks))].sum()
        results.setdefault(("faiss", nprobe), []).append((found, exact, np.median(spent) * 1e6))
    return True


def kiv(args: argparse.Namespace, probed: int) -> tuple[float, float]:
    command = ["cargo", "run", "--quiet", "--release", "-p", "kiv-index", "--example", "recall"]
    command += ["--", str(args.capture), f"n={args.keys}", f"queries={args.queries}"]
    command += [f"probed={probed}", "timed=300", f"dim={args.dim}", f"group={args.group}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times = [float(us) for us in re.findall(r"timed (\d+)", out)]
    return float(re.findall(r"^all: .* found ([\d.]+)", out, re.M)[0]), float(np.mean(times))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("capture", type=Path, help="folder of a capture")
    p.add_argument("--dim", type=int, default=64)
    p.add_argument("--group", type=int, default=2, help="query heads of a KV head")
    p.add_argument("--keys", type=int, default=262144)
    p.add_argument("--queries", type=int, default=8)
    p.add_argument("--lists", type=int, default=2048)
    p.add_argument("--m", type=int, default=64, help="subquantizers of a key in Faiss")
    p.add_argument("--nprobe", type=int, nargs="+", default=[8, 32, 128, 512, 2048])
    p.add_argument("--probed", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    args = p.parse_args()
    faiss.omp_set_num_threads(1)
    results: dict = {}
    layer = 0
    while head(args, layer, 0, results):
        number = 1
        while head(args, layer, number, results):
            number += 1
        layer += 1
    print(f"{args.keys} keys, {args.queries} questions a head; time of one head's search")
    for (side, nprobe), found in results.items():
        mass = sum(f for f, _, _ in found) / sum(e for _, e, _ in found)
        us = np.mean([us for _, _, us in found])
        print(f"{side} nprobe {nprobe:5} of {args.lists}: found {mass:.4f} {us:8.0f} us", flush=True)
    for probed in args.probed:
        mass, us = kiv(args, probed)
        print(f"kiv   probed {probed:5}: found {mass:.4f} {us:8.0f} us", flush=True)


main()
