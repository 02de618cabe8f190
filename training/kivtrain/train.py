"""The training loop."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .batches import Batch, Batches, make_batch
from .config import Config
from .corpus import Corpus
from .model import Model
from .optim import fast_bfloat16, optimizers
from .tokenizer import Vocabulary

ASKED = (
    "needles",
    "attributes",
    "words",
    "phonebook",
    "reverse",
    "track",
    "count",
    "passkey",
)


@dataclass
class Tally:
    """Answers that were right, by kind of document."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    total: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, batch: Batch, chosen: Tensor, hits: Tensor) -> None:
        """`hits`: whether each chosen position was predicted right. An answer is right
        if all its tokens are."""
        rows, cols = chosen.nonzero(as_tuple=True)
        answer = batch.answers[rows, cols]
        good: dict[tuple[int, int], bool] = {}
        for row, number, hit in zip(rows.tolist(), answer.tolist(), hits.tolist()):
            if number:
                good[row, number] = good.get((row, number), True) and hit
        for (row, _), right in good.items():
            self.right[batch.kinds[row]] += right
            self.total[batch.kinds[row]] += 1

    def shares(self) -> dict[str, float]:
        return {k: round(self.right[k] / n, 3) for k, n in sorted(self.total.items())}


def learning_rate(config: Config, step: int) -> float:
    """Share of the full learning rate."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = step / config.steps
    if done < config.decay_from:
        return 1.0
    return 1 - (1 - config.lr_end) * (done - config.decay_from) / (1 - config.decay_from)


def kept_heads(config: Config, step: int, n: int, rng: random.Random) -> Tensor | None:
    """Which heads take part: layers, sequences, heads."""
    done = step / config.steps
    ramp = (done - config.drop_from) / max(1e-9, config.drop_full - config.drop_from)
    # The last tenth of the steps is for the whole model, as it will be used.
    ramp = min(1.0, max(0.0, ramp), max(0.0, (1 - done) / 0.1 - 1))
    if ramp == 0 or config.head_drop + config.group_drop + config.attn_drop == 0:
        return None
    s = config.shape
    keep = torch.ones(s.n_layer, n, s.n_head)
    group = s.n_head // s.n_kv
    for layer in range(int(s.n_layer * config.drop_layers_from), s.n_layer):
        for i in range(n):
            if rng.random() < config.attn_drop * ramp:
                keep[layer, i] = 0
            for g in range(s.n_kv):
                if rng.random() < config.group_drop * ramp:
                    keep[layer, i, g * group : (g + 1) * group] = 0
            for h in range(s.n_head):
                if rng.random() < config.head_drop * ramp:
                    keep[layer, i, h] = 0
    return keep


def forward(
    model: Model, batch: Batch, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of losses, chosen positions, and whether each was right."""
    chosen = batch.weights > 0
    hidden = model.hidden(batch.tokens, batch.positions, batch.bias(), keep)
    # Position i predicts token i + 1; the last has weight 0.
    target = batch.tokens.roll(-1, dims=1)[chosen]
    logits = model.logits(hidden[chosen]).float()
    loss = F.cross_entropy(logits, target, reduction="none")
    return (loss * batch.weights[chosen]).sum(), chosen, logits.detach().argmax(-1) == target


@torch.no_grad()
def evaluate(
    model: Model,
    corpus: Corpus,
    tokenizer: Tokenizer,
    n_tokens: int,
    dilution: float,
    documents: int,
    device: torch.device,
    may_jump: bool = True,
) -> dict[str, float]:
    """Accuracy on names and prose that are not trained on."""
    tally = Tally()
    for kind in ASKED:
        batch = make_batch(
            corpus,
            tokenizer,
            f"held out/{kind}",
            [kind] * documents,
            n_tokens,
            dilution,
            held_out=True,
            may_jump=may_jump,
        ).to(device)
        with autocast(device):
            _, chosen, hits = forward(model, batch, None)
        tally.add(batch, chosen, hits)
    return tally.shares()


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device))


def save(path: Path, state: dict[str, Any]) -> None:
    """All or nothing."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def plain_signals(_: int) -> None:
    """For the processes that write documents: only the main one decides to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train(
    config: Config,
    corpus: Corpus,
    vocabulary: Vocabulary,
    model: Model,
    out: Path,
    device: torch.device,
    workers: int = 0,
    save_minutes: float = 4.0,
    eval_every: int = 100,
    eval_documents: int = 6,
    stop_after_minutes: float | None = None,
) -> Model:
    """Trains `model`, from the checkpoint in `out` if there is one."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    model = model.to(device)
    optims = optimizers(model, config.lr_muon, config.lr_adam)
    step, n_tokens, spent = 0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optims, state["optims"]):
            o.load_state_dict(s)
        step, n_tokens, spent = state["step"], state["tokens"], state["seconds"]
        print(f"goes on at step {step}", flush=True)
    full = [config.lr_muon, config.lr_adam]
    tokenizer = vocabulary.build()
    batches = Batches(config, corpus, tokenizer)
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(step, config.steps),
        num_workers=workers,
        pin_memory=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=plain_signals,
    )
    log = (out / "log.jsonl").open("a")
    tally, losses, began, saved = Tally(), [], time.time(), time.time()
    spent_before, first = spent, step

    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopped.append(got))

    def checkpoint_now() -> None:
        save(
            checkpoint,
            {
                "model": model.state_dict(),
                "optims": [o.state_dict() for o in optims],
                "step": step,
                "tokens": n_tokens,
                "seconds": spent,
            },
        )

    for batch in loader:
        rate = learning_rate(config, step)
        for o, lr in zip(optims, full):
            for g in o.param_groups:
                g["lr"] = lr * rate
        rng = random.Random(f"{config.seed}/{step}/heads")
        total = batch.weights.sum().clamp(min=1.0)
        size = batch.tokens.shape[0]
        longer = batch.tokens.shape[1] // config.seq_len
        micro = max(1, config.micro_batch // max(1, longer))
        loss_sum = 0.0
        for start in range(0, size, micro):
            part = batch.part(slice(start, start + micro)).to(device)
            keep = kept_heads(config, step, part.tokens.shape[0], rng)
            with autocast(device):
                loss, chosen, hits = forward(
                    model, part, None if keep is None else keep.to(device)
                )
            (loss / total.to(device)).backward()
            loss_sum += float(loss.detach())
            tally.add(part, chosen, hits)
        for o in optims:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        n_tokens += batch.tokens.numel()
        spent = spent_before + time.time() - began
        losses.append(loss_sum / float(total))
        last = step == config.steps
        record: dict[str, Any] = {}
        if step % 20 == 0 or last:
            record = {
                "step": step,
                "tokens": n_tokens,
                "seconds": round(spent, 1),
                "loss": round(sum(losses) / len(losses), 4),
                "rate": round(rate, 4),
                "train": tally.shares(),
            }
            tally, losses = Tally(), []
        if eval_every and (step % eval_every == 0 or last or step == first + 1):
            record |= {"step": step, "tokens": n_tokens}
            record["held_out"] = evaluate(
                model,
                corpus,
                tokenizer,
                config.seq_len,
                1024.0,
                eval_documents,
                device,
                config.jumps,
            )
        if record:
            line = json.dumps(record)
            print(line, file=log, flush=True)
            print(line, flush=True)
        if last or time.time() - saved > 60 * save_minutes:
            checkpoint_now()
            saved = time.time()
        over = stop_after_minutes is not None and time.time() - began > 60 * stop_after_minutes
        if step < config.steps and (over or stopped):
            checkpoint_now()
            raise SystemExit(f"stopped at step {step}; the same command goes on from here")
    return model
