#!/usr/bin/env python3
"""What attention over all keys costs by PyTorch's flash attention, for one token, in the shapes
of `kiv bench --synthetic`: one JSON line for each shape and length. See README.md."""

import argparse
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# Layers that see everything, query heads, KV heads, values of a head.
SHAPES = {
    "llama-3.2-3b": (28, 24, 8, 128),
    "qwen2.5-3b": (36, 16, 2, 128),
    "llama-3.1-8b": (32, 32, 8, 128),
}
# (Flash attention takes heads of 256 values at most: gemma-4-e2b's are of 512.)


def milliseconds(heads, kv_heads, dim, n_keys, device, rounds):
    """Median time of one layer's attention."""

    def random(n_heads, n):
        return torch.randn(1, n_heads, n, dim, dtype=torch.float16, device=device)

    query, keys, values = random(heads, 1), random(kv_heads, n_keys), random(kv_heads, n_keys)

    def attend():
        scaled_dot_product_attention(query, keys, values, enable_gqa=heads != kv_heads)

    times = []
    with torch.inference_mode(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        for _ in range(5):
            attend()
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            attend()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", default="4096,32768,131072,524288,1048576", help="lengths")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="names of shapes")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("flash.py: PyTorch sees no GPU")
    for name in args.shapes.split(","):
        if name not in SHAPES:
            continue
        layers, heads, kv_heads, dim = SHAPES[name]
        for n_keys in map(int, args.keys.split(",")):
            each = milliseconds(heads, kv_heads, dim, n_keys, "cuda", args.rounds)
            row = {"shape": name, "n_ctx": n_keys, "layers": layers, "layer_ms": each, "torch": torch.__version__}
            print(json.dumps(row), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
