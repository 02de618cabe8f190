"""Checks a finished run: that it learnt, and that its GGUF file is what was trained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch

from . import gguf_io
from .config import Config
from .model import Model
from .tokenizer import START_ID

PROMPT = "The secret code of Silver Fox is 48213.\nWhat is the secret code of Silver Fox?"
# f16 keeps 11 bits, q8_0 about 7 of the largest of 32 numbers.
ROUNDING = {"f32": 0.0, "f16": 2**-11, "q8_0": 1 / 127}


class Failed(SystemExit):
    pass


def greedy(model: Model, tokens: list[int], n: int) -> list[int]:
    tokens = list(tokens)
    with torch.no_grad():
        for _ in range(n):
            hidden = model.hidden(torch.tensor([tokens]), torch.arange(len(tokens))[None])
            tokens.append(int(model.logits(hidden[:, -1]).argmax()))
    return tokens[-n:]


def check(out: Path, kiv: Path | None) -> None:
    config = Config.from_json(json.loads((out / "config.json").read_text()))
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    if not losses[-1] < 0.75 * losses[0]:
        raise Failed(f"the loss did not fall: {losses[0]} at first, {losses[-1]} at last")
    print(f"loss: {losses[0]} at first, {losses[-1]} at last")

    path = out / f"{config.name}-{config.export}.gguf"
    read, vocabulary = gguf_io.load(path)
    trained = Model(config.shape)
    state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    trained.load_state_dict(state["model"])
    if read.shape != config.shape:
        raise Failed(f"{path}: the shape is {read.shape}, not {config.shape}")
    theirs = dict(read.named_parameters())
    for name, p in trained.named_parameters():
        bound = (ROUNDING[config.export] if p.dim() == 2 else 0.0) * float(p.detach().abs().max()) + 1e-7
        worst = float((p - theirs[name]).detach().abs().max())
        if worst > bound:
            raise Failed(f"{path}: {name} differs by {worst}, more than {bound}")
    tokens = [START_ID, *vocabulary.build().encode(PROMPT).ids]
    at = torch.arange(len(tokens))[None]
    with torch.no_grad():
        ours, others = (
            m.logits(m.hidden(torch.tensor([tokens]), at)).log_softmax(-1) for m in (trained, read)
        )
    worst = float((ours - others).abs().max())
    if worst > (0.5 if config.export == "q8_0" else 0.05):
        raise Failed(f"{path}: log-probabilities differ by {worst}")
    print(f"{path}: same weights, log-probabilities differ by at most {worst:.4f}")

    if kiv is None:
        print("not run by llama.cpp: no kiv was given or built")
        return
    expected = vocabulary.build().decode(greedy(read, tokens, 4))
    command = [str(kiv), "run", "-m", str(path), "-p", PROMPT, "-n", "4", "--temp", "0"]
    command += ["-c", "512", "--kv-policy", "full", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{kiv} cannot run {path}: {done.stderr.strip()}")
    got = json.loads(done.stdout)["text"]
    if got != expected:
        raise Failed(f"llama.cpp goes on with {got!r}, the trained model with {expected!r}")
    print(f"llama.cpp goes on with the same text: {got!r}")
