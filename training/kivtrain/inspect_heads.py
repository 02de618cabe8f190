"""Which attention heads find a fact, and what happens without each of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from .batches import document_row
from .corpus import Corpus
from .documents import Role, Writer
from .model import Model
from .tokenizer import Vocabulary


@dataclass
class Heads:
    """One kind of question."""

    kind: str
    documents: int
    # Mean attention mass on the fact (layers, heads), at the token that predicts
    # the answer's first.
    share: torch.Tensor
    # Right answers with all heads, and without each one (layers, heads).
    right: float
    right_without: torch.Tensor

    def lines(self) -> list[str]:
        lines = [f"{self.kind}: {self.documents} documents, {self.right:.0%} right"]
        for layer in range(self.share.shape[0]):
            cells = [
                f"{share:5.2f} ({without:4.0%})"
                for share, without in zip(
                    self.share[layer].tolist(), self.right_without[layer].tolist()
                )
            ]
            lines.append(f"  layer {layer}: " + "  ".join(cells))
        return lines


@torch.no_grad()
def measure(
    model: Model,
    vocabulary: Vocabulary,
    corpus: Corpus,
    kind: str,
    n_tokens: int,
    documents: int,
) -> Heads:
    """Held-out names and prose, one question each, natural positions, no dilution."""
    tokenizer = vocabulary.build()
    rng = random.Random(f"heads/{kind}")
    writer = Writer(corpus, tokenizer, rng, n_tokens, held_out=True)
    s = model.shape
    share = torch.zeros(s.n_layer, s.n_head)
    right_without = torch.zeros(s.n_layer, s.n_head)
    right, n = 0, 0
    while n < documents:
        doc = writer.write(kind)
        doc.questions = doc.questions[:1]
        question = doc.questions[0]
        mark = next(m for m in question.marks if m.answer)
        answer = question.text[mark.start : mark.end]
        home = [
            i
            for i, p in enumerate(doc.body)
            if p.role is Role.PLAIN and (answer in p.text or f" {p.text}".startswith(answer + " "))
        ]
        row = document_row(doc, tokenizer, rng)
        at = [i - 1 for i, a in enumerate(row.answers) if a == 1]
        if len(home) != 1:
            continue
        n += 1
        tokens = torch.tensor([row.tokens])
        positions = torch.arange(tokens.shape[1])[None]
        # A number's first token is the space before it, which needs no look-up.
        digits = answer.strip().isdigit()
        ask = at[1] if digits else at[0]
        mass = model.attention(tokens, positions, torch.tensor([ask]))[:, 0]
        on_fact = torch.tensor([p == home[0] for p in row.pieces])
        share += mass[:, :, on_fact].sum(-1)
        # One sequence per head that is left out, and one with all of them.
        size = s.n_layer * s.n_head + 1
        keep = torch.ones(s.n_layer, size, s.n_head)
        for i in range(size - 1):
            keep[i // s.n_head, i, i % s.n_head] = 0
        want = tokens[0, [i + 1 for i in at]]
        for start in range(0, size, 4):
            part = keep[:, start : start + 4]
            rows = part.shape[1]
            hidden = model.hidden(
                tokens.expand(rows, -1), positions.expand(rows, -1), None, part
            )
            got = model.logits(hidden[:, at]).argmax(-1)
            for i, good in enumerate((got == want).all(-1).tolist(), start):
                if i == size - 1:
                    right += good
                else:
                    right_without[i // s.n_head, i % s.n_head] += good
    return Heads(kind, n, share / n, right / n, right_without / n)
