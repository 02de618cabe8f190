#!/usr/bin/env python3
"""Puts what scripts/gpu-check has measured into one table. See README.md.

Takes a folder of `kiv bench --json` lines (NAME.jsonl), timelines (NAME.timeline.json) and
flash.py's lines (flash.jsonl). Needs nothing but Python."""

import json
import sys
from collections import defaultdict
from pathlib import Path

# What the project wants: at a million tokens as many times a token of 4 K at most, shares.
SLOWER, STOPS, HIDDEN, MEMORY = 1.5, 0.05, 0.9, 12 << 30


def lines(path):
    """JSON lines of a file; one that was broken off is none."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path.name}: a line was broken off")
    return rows


def mib(n):
    return "-" if n is None else f"{n / 2**20:.0f}"


def share(x):
    return "-" if x is None else f"{100 * x:.0f} %"


def label(row):
    """Which cache and index a row is about."""
    name = row["policy"]
    if row["run"].endswith("nkvo"):
        name += " -nkvo"
    if row.get("device_searches"):
        name += ", index on the GPU"
    return name


def table(head, rows):
    widths = [max(len(str(r[i])) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(str(cell).rjust(width) for cell, width in zip(row, widths)))


def sizes(model, rows):
    """Every row of a model; of each kind, how many times the shortest one's time."""
    print(f"\n{model}")
    head = ["tokens", "cache", "ms/token", "x shortest", "choosing", "bringing", "foreseen", "hidden",
            "GPU MiB", "KV MiB", "index on GPU MiB", "host MiB"]
    first, out = {}, []
    for row in sorted(rows, key=lambda row: (label(row), row["n_ctx"])):
        base = first.setdefault(label(row), row)
        ms = row["decode_ms_per_token"]
        out.append([
            row["n_ctx"], label(row), f"{ms:.2f}", f"{ms / base['decode_ms_per_token']:.2f}",
            f"{row['select_ms']:.2f}", f"{row['swap_ms']:.2f}", share(row["gpu_foreseen"]),
            share(row["gpu_hidden"]), mib(row["device_used_bytes"]), mib(row["resident_kv_bytes"]),
            mib(row["device_index_bytes"]), mib(row["host_kv_bytes"] + row["index_bytes"]),
        ])
    table(head, out)


def against(rows, flash):
    """Full attention's time over retrieval's, at the same length."""
    out = []
    whole = {(f["shape"], f["n_ctx"]): f["layers"] * f["layer_ms"] for f in flash}
    for row in rows:
        if row["policy"] != "pq":
            continue
        same = [r for r in rows if r["model"] == row["model"] and r["n_ctx"] == row["n_ctx"]]
        ms = row["decode_ms_per_token"]
        for other in same:
            if other["policy"] == "full":
                out.append([row["model"], row["n_ctx"], label(row), label(other), f"{other['decode_ms_per_token'] / ms:.2f}"])
        shape = row["model"].split()[1] if row["model"].startswith("synthetic") else None
        if (shape, row["n_ctx"]) in whole and "," not in row["model"]:
            # Attention alone, where the row has all that a token takes.
            out.append([row["model"], row["n_ctx"], label(row), "PyTorch's flash attention alone",
                        f"{whole[shape, row['n_ctx']] / ms:.2f}"])
    if out:
        print("\nHow many times as long a token takes with")
        table(["model", "tokens", "", "instead", "x"], out)


def stops(rows):
    """What stopping before each layer costs, as a share of a token."""
    found = {}
    for row in rows:
        if row["policy"] in ("full", "full+stops") and not row["run"].endswith("nkvo"):
            found.setdefault((row["model"], row["n_ctx"], row["run"]), {})[row["policy"]] = row["decode_ms_per_token"]
    out = []
    for (model, n_ctx, _), both in sorted(found.items()):
        if len(both) == 2:
            out.append((model, n_ctx, both["full+stops"] / both["full"] - 1))
    if out:
        print("\nWhat the callback's stops add to a token of full attention")
        table(["model", "tokens", "share"], [[m, n, share(s)] for m, n, s in out])
    return out


def timelines(folder):
    """Sums of one token's times."""
    for path in sorted(folder.glob("*.timeline.json")):
        names, sums, counts = {}, defaultdict(float), defaultdict(int)
        for event in json.loads(path.read_text())["traceEvents"]:
            if event["name"] == "process_name":
                names[event["pid"]] = event["args"]["name"]
            elif event["ph"] == "X":
                sums[event["pid"], event["cat"]] += event["dur"] / 1e3
                counts[event["pid"], event["cat"]] += 1
        kinds = sorted({kind for _, kind in sums})
        print(f"\nOne token, in ms (and of how many pieces): {path.name}")
        rows = [[name] + [f"{sums[pid, kind]:.2f} ({counts[pid, kind]})" for kind in kinds] for pid, name in names.items()]
        table(["", *kinds], rows)


def targets(rows, stopped):
    """What was wanted, and what it is."""
    out = []

    def told(what, value, is_met):
        out.append([what, value, "met" if is_met else "MISSED"])

    kinds = defaultdict(list)
    for row in rows:
        if row["policy"] == "pq":
            kinds[row["model"], label(row)].append(row)
    for (model, name), of_kind in sorted(kinds.items()):
        first, last = (pick(of_kind, key=lambda row: row["n_ctx"]) for pick in (min, max))
        if last["n_ctx"] >= 8 * first["n_ctx"]:
            times = last["decode_ms_per_token"] / first["decode_ms_per_token"]
            what = f"{model}, {name}: {last['n_ctx']} / {first['n_ctx']} tokens"
            told(f"{what}, time of a token", f"{times:.2f}", times <= SLOWER)
            used = [row["resident_kv_bytes"] for row in (first, last)]
            told(f"{what}, KV on the GPU", f"{used[1] / used[0]:.3f}", used[1] == used[0])
        taken = last["device_used_bytes"]
        if taken is not None and "," not in model:
            told(f"{model}, {name}: all of the GPU's memory, MiB", mib(taken), taken < MEMORY)
        if last["gpu_hidden"] is not None:
            told(f"{model}, {name}: transfers hidden", share(last["gpu_hidden"]), last["gpu_hidden"] >= HIDDEN)
    for model, n_ctx, cost in stopped:
        told(f"{model}: stops at {n_ctx} tokens", share(cost), cost <= STOPS)
    if out:
        print("\nTargets")
        table(["", "", ""], out)


def main():
    folder = Path(sys.argv[1])
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name != "flash.jsonl":
            rows += [{**row, "run": path.stem} for row in lines(path)]
    flash = lines(folder / "flash.jsonl") if (folder / "flash.jsonl").exists() else []
    models = defaultdict(list)
    for row in rows:
        models[row["model"]].append(row)
    for model, of_model in models.items():
        sizes(model, of_model)
    against(rows, flash)
    if flash:
        print("\nOne layer's attention by PyTorch's flash attention, ms")
        table(["shape", "keys", "ms"], [[f["shape"], f["n_ctx"], f"{f['layer_ms']:.3f}"] for f in flash])
    stopped = stops(rows)
    timelines(folder)
    targets(rows, stopped)


if __name__ == "__main__":
    main()
