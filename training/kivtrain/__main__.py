"""Command line: `python -m kivtrain train|export|heads|check`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from . import corpus as corpora
from . import gguf_io
from .check import check
from .config import CONFIGS, Config
from .corpus import Corpus
from .documents import Writer
from .grow import grow
from .inspect_heads import measure
from .model import Model
from .tokenizer import Vocabulary
from .train import ASKED, train


def load_corpus(out: Path) -> Corpus:
    """The corpus of a run, read from its sources the first time."""
    path = out / "corpus.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        corpora.build().save(path)
    return Corpus.load(path)


def train_vocabulary(corpus: Corpus, size: int) -> Vocabulary:
    """A tokenizer for prose and for the documents that the model will see."""
    import random

    texts = [" ".join(lines[:40_000]) for lines in corpus.prose.values()]

    # Documents are written by a tokenizer's measure: a rough one will do here.
    class Rough:
        class Encoded:
            def __init__(self, n: int) -> None:
                self.ids = range(n)

        def encode(self, text: str) -> "Rough.Encoded":
            return Rough.Encoded(len(text) // 3)

    writer = Writer(corpus, Rough(), random.Random("vocabulary"), 384)  # type: ignore[arg-type]
    for kind in writer.makers:
        for _ in range(400):
            doc = writer.write(kind)
            texts.append("".join(p.text for p in doc.body + doc.questions))
    return Vocabulary.train(texts, size)


def start(args: argparse.Namespace, config: Config, corpus: Corpus) -> tuple[Config, Model, Vocabulary]:
    """The model to begin with."""
    if args.init:
        model, vocabulary = gguf_io.load(args.init)
        if config.grows:
            torch.manual_seed(config.seed)
            return config, grow(model, config.shape), vocabulary
        return replace(config, shape=model.shape), model, vocabulary
    path = args.out / "vocabulary.json"
    if path.exists():
        vocabulary = Vocabulary(**json.loads(path.read_text()))
    else:
        vocabulary = train_vocabulary(corpus, config.shape.vocab)
        path.write_text(json.dumps(vocabulary.__dict__))
    torch.manual_seed(config.seed)
    return config, Model(config.shape), vocabulary


def command_train(args: argparse.Namespace) -> None:
    config = CONFIGS[args.config]
    changes = {k: v for k in ("steps", "seed", "batch") if (v := getattr(args, k)) is not None}
    config = replace(config, **changes)
    if (config.name == "tiny-tasks" or config.grows) and not args.init:
        raise SystemExit(f"{config.name} begins with a model: give one with --init FILE.gguf")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pid").write_text(str(os.getpid()))
    corpus = load_corpus(args.out)
    config, model, vocabulary = start(args, config, corpus)
    (args.out / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    n = sum(p.numel() for p in model.parameters())
    print(f"{config.name}: {n:,} parameters on {device}", flush=True)
    model = train(
        config,
        corpus,
        vocabulary,
        model,
        args.out,
        device,
        workers=args.workers,
        save_minutes=args.save_minutes,
        eval_every=args.eval_every,
        stop_after_minutes=args.minutes,
    )
    write(model, vocabulary, config, args.out / f"{config.name}-{config.export}.gguf")


def write(model: Model, vocabulary: Vocabulary, config: Config, path: Path) -> None:
    digest = gguf_io.export(model, vocabulary, path, config.name, config.export)
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}", flush=True)


def command_export(args: argparse.Namespace) -> None:
    """Writes the checkpoint of a run that is not over."""
    config = Config.from_json(json.loads((args.out / "config.json").read_text()))
    if args.init:
        _, vocabulary = gguf_io.load(args.init)
    else:
        vocabulary = Vocabulary(**json.loads((args.out / "vocabulary.json").read_text()))
    state = torch.load(args.out / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Model(config.shape)
    model.load_state_dict(state["model"])
    print(f"step {state['step']}, {state['tokens']:,} tokens")
    write(model, vocabulary, config, args.file)


def command_heads(args: argparse.Namespace) -> None:
    """Attention mass on the fact per head, and accuracy without the head."""
    model, vocabulary = gguf_io.load(args.file)
    corpus = load_corpus(args.out)
    for kind in args.kinds.split(","):
        heads = measure(model, vocabulary, corpus, kind, args.tokens, args.documents)
        print("\n".join(heads.lines()), flush=True)


def command_check(args: argparse.Namespace) -> None:
    check(args.out, args.kiv if args.kiv and args.kiv.exists() else None)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m kivtrain", description=__doc__)
    commands = p.add_subparsers(required=True)
    t = commands.add_parser("train", help="train a model, or go on with it")
    t.add_argument("--config", choices=sorted(CONFIGS), default="tiny")
    t.add_argument("--out", type=Path, required=True, help="folder of the run")
    t.add_argument("--init", type=Path, help="GGUF file to begin with (weights and tokenizer)")
    t.add_argument("--steps", type=int)
    t.add_argument("--seed", type=int)
    t.add_argument("--batch", type=int)
    t.add_argument("--device", choices=("cpu", "cuda"))
    t.add_argument("--workers", type=int, default=0, help="processes that write documents")
    t.add_argument("--minutes", type=float, help="stop (resumable) after so long")
    t.add_argument("--save-minutes", type=float, default=4.0)
    t.add_argument("--eval-every", type=int, default=100, help="steps; 0 for never")
    t.set_defaults(run=command_train)
    e = commands.add_parser("export", help="write a run's checkpoint as GGUF")
    e.add_argument("--out", type=Path, required=True, help="folder of the run")
    e.add_argument("--init", type=Path, help="the file that the run began with, if any")
    e.add_argument("file", type=Path)
    e.set_defaults(run=command_export)
    h = commands.add_parser("heads", help="which attention heads find facts")
    h.add_argument("--out", type=Path, required=True, help="folder of a run (its corpus)")
    h.add_argument("--kinds", default="needles,words,phonebook", help=f"of {', '.join(ASKED)}")
    h.add_argument("--tokens", type=int, default=1024)
    h.add_argument("--documents", type=int, default=20)
    h.add_argument("file", type=Path)
    h.set_defaults(run=command_heads)
    c = commands.add_parser("check", help="did a run learn, and is its GGUF file right?")
    c.add_argument("--out", type=Path, required=True, help="folder of the run")
    c.add_argument("--kiv", type=Path, help="kiv, to run the file with llama.cpp")
    c.set_defaults(run=command_check)
    return p


def main() -> None:
    args = parser().parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
