"""Documents as tensors: tokens, positions with jumps, and the dilution of filler.

A sequence of some hundred tokens must teach what holds for a million. Two tricks:
its parts lie far apart (the position jumps between runs of sentences), and
a filler token of another run counts as much in the softmax as the many that a real
context would have (log M is added to its logit).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .config import Config
from .corpus import Corpus
from .documents import PROSE, Document, Role, Writer
from .tokenizer import END_ID, START_ID

# Share of the prose tokens that are predicted, with as much more weight each.
PREDICTED = 0.4
FARTHEST = 1_150_000
UNJUMPED = 0.15
UNASKED_MOST = 128.0


@dataclass
class Batch:
    """Sequences of one length; token i predicts token i + 1."""

    tokens: Tensor
    positions: Tensor
    # Of predicting the next token, 0 for none.
    weights: Tensor
    # Which answer the next token is part of (from 1; 0: none).
    answers: Tensor
    runs: Tensor
    # What is added to the logits of a key, for queries of other runs.
    key_bias: Tensor
    kinds: list[str]

    def to(self, device: torch.device) -> "Batch":
        move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        return Batch(
            move(self.tokens),
            move(self.positions),
            move(self.weights),
            move(self.answers),
            move(self.runs),
            move(self.key_bias),
            self.kinds,
        )

    def part(self, rows: slice) -> "Batch":
        return Batch(
            self.tokens[rows],
            self.positions[rows],
            self.weights[rows],
            self.answers[rows],
            self.runs[rows],
            self.key_bias[rows],
            self.kinds[rows],
        )

    def bias(self) -> Tensor:
        """Dilution and causal mask: batch, 1, queries, keys."""
        t = self.tokens.shape[1]
        apart = self.runs[:, :, None] != self.runs[:, None, :]
        bias = torch.where(apart, self.key_bias[:, None, :], 0.0)
        later = torch.ones(t, t, dtype=torch.bool, device=bias.device).triu(1)
        return bias.masked_fill(later, -math.inf)[:, None]


@dataclass
class Row:
    tokens: list[int]
    weights: list[float]
    answers: list[int]
    roles: list[int]
    # Index of the piece that each token begins in.
    pieces: list[int]


def document_row(doc: Document, tokenizer: Tokenizer, rng: random.Random) -> Row:
    row = Row([START_ID], [0.0], [0], [Role.PLAIN], [0])
    pieces = doc.body + doc.questions
    if pieces and pieces[0].text[:1] in (" ", "\n"):
        # Nothing comes before the first.
        first = pieces[0]
        cut = len(first.text) - len(first.text.lstrip())
        first.text = first.text[cut:]
        for m in first.marks:
            m.start, m.end = max(0, m.start - cut), m.end - cut
    joined = rng.random() < 0.3
    n_answers, start = 0, 0
    while start < len(pieces):
        end = start + 1
        while end < len(pieces) and not (pieces[end].cut and not (joined and end == len(doc.body))):
            end += 1
        group = pieces[start:end]
        text = "".join(p.text for p in group)
        owner: list[int] = []
        weight: list[float] = []
        answer: list[int] = []
        for i, p in enumerate(group, start):
            owner += [i] * len(p.text)
            w, a = [p.weight] * len(p.text), [0] * len(p.text)
            for m in p.marks:
                w[m.start : m.end] = [m.weight] * (m.end - m.start)
                if m.answer:
                    n_answers += 1
                    a[m.start : m.end] = [n_answers] * (m.end - m.start)
            weight += w
            answer += a
        encoded = tokenizer.encode(text)
        for token, (left, right) in zip(encoded.ids, encoded.offsets):
            # All text is ASCII: one character is one byte.
            row.tokens.append(token)
            row.weights.append(weight[right - 1])
            row.answers.append(answer[right - 1])
            row.roles.append(int(pieces[owner[left]].role))
            row.pieces.append(owner[left])
        start = end
    return row


def _positions(row: Row, n_body: int, rng: random.Random, jumps: bool) -> tuple[list[int], list[int]]:
    """Positions and run numbers."""
    n = len(row.tokens)
    starts = [i for i in range(2, n) if row.pieces[i] != row.pieces[i - 1]]
    # Questions follow each other; the first may be far from the last sentence.
    inner = [i for i in starts if row.pieces[i] < n_body]
    first = [i for i in starts if row.pieces[i] == n_body]
    places = set(rng.sample(inner, min(len(inner), rng.randint(1, 12)))) if jumps else set()
    if jumps and first and rng.random() < 0.5:
        places.add(first[0])
    spread = math.exp(rng.uniform(math.log(512), math.log(FARTHEST))) - n
    shares = [rng.expovariate(1.0) ** 2 for _ in places]
    total, gaps = sum(shares), iter(shares)
    position, run = 0, 0
    positions, runs = [], []
    for i in range(n):
        if i in places:
            position += max(0, int(spread * next(gaps) / total))
            run += 1
        positions.append(position)
        runs.append(run)
        position += 1
    return positions, runs


def make_batch(
    corpus: Corpus,
    tokenizer: Tokenizer,
    seed: str,
    kinds: list[str],
    n_tokens: int,
    dilution: float,
    held_out: bool = False,
    silent_hops: float = 0.0,
    may_jump: bool = True,
) -> Batch:
    """The batch that follows from a seed."""
    rng = random.Random(seed)
    writer = Writer(corpus, tokenizer, rng, n_tokens, held_out, silent_hops)
    n = len(kinds)
    tokens = torch.full((n, n_tokens), END_ID)
    positions = torch.zeros(n, n_tokens, dtype=torch.long)
    weights = torch.zeros(n, n_tokens)
    answers = torch.zeros(n, n_tokens, dtype=torch.long)
    runs = torch.zeros(n, n_tokens, dtype=torch.long)
    key_bias = torch.zeros(n, n_tokens)
    for i, kind in enumerate(kinds):
        doc = writer.write(kind)
        row = document_row(doc, tokenizer, rng)
        size = min(len(row.tokens), n_tokens)
        jumps = rng.random() >= UNJUMPED and may_jump
        at, run = _positions(row, len(doc.body), rng, jumps)
        filler = rng.uniform(0, math.log(max(1.0, dilution)))
        unasked = rng.uniform(0, min(filler, math.log(UNASKED_MOST)))
        by_role = {Role.FILLER: filler, Role.UNASKED: unasked, Role.PLAIN: 0.0}
        for j in range(len(row.weights)):
            if row.weights[j] == PROSE or (kind == "prose" and row.weights[j] > 0):
                row.weights[j] = row.weights[j] / PREDICTED if rng.random() < PREDICTED else 0.0
        tokens[i, :size] = torch.tensor(row.tokens[:size])
        positions[i, :size] = torch.tensor(at[:size])
        # Each token's weight is that of predicting it from the one before.
        weights[i, : size - 1] = torch.tensor(row.weights[1:size])
        answers[i, : size - 1] = torch.tensor(row.answers[1:size])
        runs[i, :size] = torch.tensor(run[:size])
        key_bias[i, :size] = torch.tensor([by_role[Role(r)] for r in row.roles[:size]])
    return Batch(tokens, positions, weights, answers, runs, key_bias, kinds)


@dataclass
class Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The batch of each step, a function of the run's seed and the step alone."""

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        c = self.config
        rng = random.Random(f"{c.seed}/{step}/kinds")
        done = step / c.steps
        late = 1.0 if done >= c.mixed_from else 0.0
        if c.first_until <= done < c.mixed_from:
            late = (done - c.first_until) / (c.mixed_from - c.first_until)
        long = c.long_every > 0 and step % c.long_every == c.long_every - 1
        size = c.batch // c.long_factor if long else c.batch
        kinds = []
        for _ in range(size):
            mix = c.mix if rng.random() < late else c.first_mix
            kinds.append(rng.choices(list(mix), list(mix.values()))[0])
        since = max(0.0, done - c.dilution_from)
        ramp = 1.0 if c.dilution_ramp <= 0 else min(1.0, since / c.dilution_ramp)
        return make_batch(
            self.corpus,
            self.tokenizer,
            f"{c.seed}/{step}",
            kinds,
            c.seq_len * (c.long_factor if long else 1),
            math.exp(ramp * math.log(c.dilution)) if c.dilution > 1 else 1.0,
            silent_hops=c.silent_hops,
            may_jump=c.jumps,
        )
