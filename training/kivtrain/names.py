"""Names, codes and words that facts are made of."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .corpus import Corpus

_STARTS = "b br c ch cl d dr f fl g gl gr h j k kl l m n p pl qu r s sh sk st t th tr v w z".split()
_MIDDLES = "a e i o u ai ea ee ou ar er or an en in on ul".split()
_ENDS = "l m n r s t x d ck nd rn th sh ll st".split()

VALUES: dict[str, list[str]] = {
    "colour": "red blue green yellow orange purple brown black white pink grey silver gold beige "
    "maroon olive turquoise magenta lilac lavender navy copper saffron".split(),
    "animal": "dog cat horse cow sheep goat pig hen duck goose mouse rabbit fox bear lion wolfhound "
    "stag moose whale shark robin sparrow crow owl swan bee ant beetle frog toad".split(),
    "food": "bread cheese butter honey apples pears plums soup rice beans fish salt cake pie onions "
    "carrots cabbage nuts grapes olives porridge pancakes".split(),
    "city": "London Paris Rome Madrid Vienna Prague Berlin Lisbon Dublin Oslo Athens Cairo Delhi "
    "Tokyo Lima Boston Chicago Toronto Sydney Warsaw Geneva Naples".split(),
    "instrument": "violin piano flute drum trumpet harp organ guitar banjo cello oboe horn".split(),
    "season": "spring summer autumn winter".split(),
    "metal": "iron copper tin lead silver gold zinc nickel brass steel".split(),
    "tree": "oak ash elm birch pine willow maple cedar beech larch poplar".split(),
}


@dataclass
class Namer:
    """Draws names. `held_out` ones are for evaluation during training."""

    corpus: Corpus
    rng: random.Random
    held_out: bool = False

    def pseudo(self) -> str:
        r = self.rng
        while True:
            word = "".join(
                r.choice(_STARTS) + r.choice(_MIDDLES) for _ in range(r.choice((1, 1, 2)))
            ) + r.choice(_ENDS)
            if word not in self.corpus.forbidden:
                return word

    def word(self) -> str:
        if self.held_out:
            return self.rng.choice(self.corpus.held_out_words)
        if self.rng.random() < 0.12:
            return self.pseudo()
        return self.rng.choice(self.corpus.words)

    def _pair(self) -> list[str]:
        if not self.held_out and self.rng.random() < 0.35:
            return [self.rng.choice(self.corpus.first), self.rng.choice(self.corpus.second)]
        return [self.word().capitalize(), self.word().capitalize()]

    def names(self, n: int, one_word: float = 0.3, sharing: float = 0.4) -> list[str]:
        """`n` distinct names; `sharing` of them share a word with an earlier one."""
        r, found = self.rng, []
        while len(found) < n:
            if r.random() < one_word:
                parts = [self.word().capitalize()]
            else:
                parts = self._pair()
            if found and r.random() < sharing:
                other = r.choice(found).split(" ")
                if len(parts) == 1:
                    if r.random() < 0.4:
                        parts = [r.choice(other)]
                else:
                    parts[r.randrange(2)] = r.choice(other)
            name = " ".join(parts)
            if name not in found:
                found.append(name)
        return found

    def code(self, digits: int | None = None) -> str:
        if digits is None:
            digits = self.rng.choices((4, 5, 6, 7), (2, 6, 1, 1))[0]
        return str(self.rng.randrange(10 ** (digits - 1), 10**digits))

    def value(self, topic: str) -> str:
        """A word as the answer about a topic, now and then an unlikely one."""
        if self.rng.random() < 0.5:
            return self.rng.choice(VALUES[topic])
        word = self.word()
        return word.capitalize() if topic == "city" else word
