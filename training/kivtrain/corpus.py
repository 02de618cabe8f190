"""Prose, and the words that names are made of.

Prose has three sources, each used if it is there: kiv's own generator (needs
`cargo`), the King James Bible (Debian package `bible-kjv`) and the documentation
that rustup installs. Sentences with a word that kiv keeps for evaluation names
are dropped, and so is a tenth of the Bible's chapters.
"""

from __future__ import annotations

import hashlib
import html
import json
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
NEEDLE_NAMES = REPO / "crates/kiv-haystack/src/lexicon/needle_names.rs"

# Seeds of generated prose from here on are for training; `kiv eval` uses the
# user's seed times 1,000,003, `kiv demo` small ones.
PROSE_SEED = 7_700_000_000
HELD_OUT_PERCENT = 10

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_ASCII = re.compile(r"[\x20-\x7e]+")
# What would answer or ask like a needle.
_RESERVED = re.compile(
    r"\d{4,}|secret code|pass ?key|magic number|phone number|alias of|[Rr]ecord \d", re.ASCII
)


def held_out(word: str, percent: int = HELD_OUT_PERCENT) -> bool:
    """Whether a word is for our own evaluation during training only."""
    digest = hashlib.sha256(word.lower().encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 * percent // 100


@dataclass(frozen=True)
class Corpus:
    """Training text."""

    # Sentences in order, paragraphs ended by an empty string.
    prose: dict[str, list[str]]
    # The same, never trained on.
    held_out: list[str]
    # Words for names: those to train on, and those held back.
    words: list[str]
    held_out_words: list[str]
    # Halves of kiv's two-word training names.
    first: list[str]
    second: list[str]
    # Words of kiv's evaluation names, never used.
    forbidden: frozenset[str]

    def save(self, path: Path) -> None:
        data = {**self.__dict__, "forbidden": sorted(self.forbidden)}
        path.write_text(json.dumps(data))

    @staticmethod
    def load(path: Path) -> "Corpus":
        data = json.loads(path.read_text())
        return Corpus(**{**data, "forbidden": frozenset(data["forbidden"])})


def name_words() -> dict[str, list[str]]:
    """The word lists of kiv-haystack's names."""
    source = NEEDLE_NAMES.read_text()
    return {
        m[1]: m[2].split()
        for m in re.finditer(r'const (\w+): &str =\s*"([^"]*)"', source)
    }


def _sentences(paragraph: str, forbidden: frozenset[str]) -> list[str]:
    kept = []
    for sentence in _SENTENCE.split(" ".join(paragraph.split())):
        words = re.findall(r"[a-z]+", sentence.lower())
        if (
            20 <= len(sentence) <= 320
            and _ASCII.fullmatch(sentence)
            and not _RESERVED.search(sentence)
            and forbidden.isdisjoint(words)
        ):
            kept.append(sentence)
    return kept


def _generated(paragraphs: int) -> list[str]:
    if not shutil.which("cargo"):
        return []
    command = ["cargo", "run", "--quiet", "--release", "--locked", "-p", "kiv-haystack"]
    command += ["--example", "sample", "--", str(PROSE_SEED), str(paragraphs)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return [p for p in done.stdout.split("\n\n") if p.strip()]


def _bible() -> tuple[list[str], list[str]]:
    """Chapters: for training, and held out."""
    if not shutil.which("bible"):
        return [], []
    command = ["bible", "-f", "gen1:1-rev22:21"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    chapters: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        verse, _, text = line.partition(" ")
        chapters.setdefault(verse.partition(":")[0], []).append(text)
    texts = {name: " ".join(lines) for name, lines in chapters.items()}
    return (
        [t for name, t in texts.items() if not held_out(name)],
        [t for name, t in texts.items() if held_out(name)],
    )


def _rust_docs(limit: int) -> list[str]:
    """Paragraphs of Rust's books."""
    if not shutil.which("rustc"):
        return []
    root = subprocess.run(
        ["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()
    html_dir = Path(root, "share/doc/rust/html")
    paragraphs: list[str] = []
    for book in ("book", "reference", "nomicon", "cargo", "rust-by-example", "edition-guide"):
        for page in sorted((html_dir / book).rglob("*.html")):
            if page.name in ("print.html", "toc.html"):
                continue
            for found in re.findall(r"<p>(.*?)</p>", page.read_text(errors="ignore"), re.S):
                text = html.unescape(re.sub(r"<[^>]+>", "", found))
                if len(text) > 80:
                    paragraphs.append(text)
            if len(paragraphs) >= limit:
                return paragraphs
    return paragraphs


def build(generated_paragraphs: int = 12_000) -> Corpus:
    """Reads all sources."""
    lists = name_words()
    forbidden = frozenset(w.lower() for w in lists["EVAL_FIRST"] + lists["EVAL_SECOND"])
    bible, bible_held_out = _bible()
    sources = {
        "generated": _generated(generated_paragraphs),
        "bible": bible,
        "rust": _rust_docs(20_000),
    }
    prose: dict[str, list[str]] = {}
    for name, paragraphs in sources.items():
        lines = [line for p in paragraphs for line in (*_sentences(p, forbidden), "")]
        if lines:
            prose[name] = lines
    if not prose:
        raise SystemExit("no prose: install Rust (cargo) or the Debian package bible-kjv")
    seen: set[str] = set()
    for lines in prose.values():
        for line in lines:
            seen.update(re.findall(r"\b[A-Za-z][a-z]{2,10}\b", line))
    # Capitalised and lower-case forms are one word.
    words = sorted({w.lower() for w in seen} - forbidden)
    random.Random(0).shuffle(words)
    held = [line for p in bible_held_out for line in (*_sentences(p, forbidden), "")]
    first = [w for w in lists["TRAIN_FIRST"]]
    second = [w for w in lists["TRAIN_SECOND"]]
    return Corpus(
        prose=prose,
        held_out=held,
        words=[w for w in words if not held_out(w)],
        held_out_words=[w for w in words if held_out(w)],
        first=first,
        second=second,
        forbidden=forbidden,
    )
