"""Training documents: text in pieces, with what is asked and what it is worth."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from tokenizers import Tokenizer

from .corpus import Corpus
from .names import VALUES, Namer


class Role(IntEnum):
    """How a piece's keys count for queries far away."""

    # Stands for many tokens like it (see batches.py).
    FILLER = 0
    # A fact that nobody asks for: for some like it.
    UNASKED = 1
    # A fact that is asked for, or part of the question: for itself.
    PLAIN = 2


# Loss weights.
ANSWER, STOP, RESTATED, STEP, PROSE, FACT, COPY = 1.0, 0.4, 0.3, 0.5, 0.12, 0.04, 0.5


@dataclass
class Mark:
    """Characters of a piece with a loss weight of their own."""

    start: int
    end: int
    weight: float
    answer: bool = False


@dataclass
class Piece:
    text: str
    role: Role
    weight: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    # Tokens of the text before and from here on are separate, as when a question
    # is put to a context that was read before.
    cut: bool = False

    def add(self, text: str, weight: float = 0.0, answer: bool = False) -> "Piece":
        if weight > 0:
            start = len(self.text)
            self.marks.append(Mark(start, start + len(text), weight, answer))
        self.text += text
        return self


@dataclass
class Fact:
    """`The {what} {of} {name} is {value}.`"""

    what: str
    name: str
    value: str
    of: str = "of"
    asked: bool = False

    @property
    def lead(self) -> str:
        return f"The {self.what} {self.of} {self.name} is"

    @property
    def sentence(self) -> str:
        return f"{self.lead} {self.value}."


@dataclass
class Document:
    kind: str
    body: list[Piece]
    questions: list[Piece]


NUMBERS = (
    "secret code",
    "access code",
    "account number",
    "phone number",
    "magic number",
    "passkey",
    "pin",
)
RECORDS = ("record", "entry", "item", "line", "receipt")
VERBS = ("paid", "owes", "sent", "received", "spent")


def ask(rng: random.Random, fact: Fact, form: str | None = None) -> Piece:
    """A question about a fact, with its answer."""
    fact.asked = True
    form = form or rng.choices(("full", "qa", "direct"), (5, 3, 2))[0]
    piece = Piece("\n", Role.PLAIN, cut=True)
    if form == "full":
        piece.add(f"What is the {fact.what} {fact.of} {fact.name}?")
        piece.add(f" The {fact.what} {fact.of}").add(f" {fact.name}", RESTATED).add(" is", RESTATED)
    elif form == "qa":
        piece.add(f"Question: What is the {fact.what} {fact.of} {fact.name}?\nAnswer:")
    else:
        piece.add(f"The {fact.what} {fact.of} {fact.name} is")
    return piece.add(f" {fact.value}", ANSWER, answer=True).add(".", STOP)


class Writer:
    """Writes documents of a number of tokens."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        rng: random.Random,
        n_tokens: int,
        held_out: bool = False,
        silent_hops: float = 0.0,
    ) -> None:
        self.corpus, self.tokenizer, self.rng, self.n_tokens = corpus, tokenizer, rng, n_tokens
        self.namer = Namer(corpus, rng, held_out)
        self.held_out, self.silent_hops = held_out, silent_hops
        self.makers: dict[str, Callable[[], Document]] = {
            "needles": self.needles,
            "attributes": self.attributes,
            "words": self.words,
            "phonebook": self.phonebook,
            "reverse": self.reverse,
            "track": self.track,
            "count": self.count,
            "passkey": self.passkey,
            "repeats": self.repeats,
            "prose": self.prose,
        }

    def write(self, kind: str) -> Document:
        return self.makers[kind]()

    # Parts.

    def size(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def filler(self, room: int) -> list[Piece]:
        """Consecutive sentences that fill `room` tokens."""
        sources = self.corpus.prose
        if self.held_out and self.corpus.held_out:
            lines = self.corpus.held_out
        else:
            # Generated prose twice as often as each other source.
            kinds = sorted(sources) + [s for s in sources if s == "generated"]
            lines = sources[self.rng.choice(kinds)]
        at = self.rng.randrange(len(lines))
        pieces: list[Piece] = []
        gap, misses = " ", 0
        while room > 8 and misses < 6:
            line = lines[at % len(lines)]
            at += 1
            if not line:
                gap = self.rng.choice(("\n\n", "\n\n", "\n", " "))
                continue
            cost = self.size(gap + line)
            if cost > room:
                misses += 1
                continue
            pieces.append(Piece(gap + line, Role.FILLER, PROSE))
            room -= cost
            gap = " "
        return pieces

    def compose(
        self,
        kind: str,
        facts: list[Piece],
        questions: list[Piece],
        filler: Callable[[int], list[Piece]] | None = None,
        ordered: bool = False,
    ) -> Document:
        """Scatters facts over as much filler as there is room for. What does not
        fit is left out, facts that nobody asks for first."""
        room = self.n_tokens - 4
        costs = [self.size(q.text) for q in questions]
        fact_costs = [self.size(f.text) for f in facts]
        total = sum(costs) + sum(fact_costs)
        for i in reversed(range(len(facts))):
            if total <= room:
                break
            if facts[i].role is Role.UNASKED:
                total -= fact_costs[i]
                del facts[i]
        while total > room and len(questions) > 1:
            questions.pop()
            total -= costs.pop()
        body = (filler or self.filler)(max(0, room - total))
        places = [self.rng.randrange(len(body) + 1) for _ in facts]
        if ordered:
            places.sort()
        else:
            self.rng.shuffle(facts)
        # From the end, so that the places before stay valid; ties keep their order.
        for place, fact in sorted(zip(places, facts), key=lambda pair: pair[0])[::-1]:
            body.insert(place, fact)
        return Document(kind, body, questions)

    def fact_pieces(self, facts: list[Fact]) -> list[Piece]:
        return [
            Piece(" " + f.sentence, Role.PLAIN if f.asked else Role.UNASKED, FACT) for f in facts
        ]

    def some(self, low: int, high: int) -> int:
        """A number that grows with the length."""
        scale = self.n_tokens / 384
        return self.rng.randint(low, max(low, round(high * scale)))

    # Kinds.

    def _facts(self, names: list[str], what: str | None = None) -> list[Fact]:
        """Mostly one kind of fact, so that the name decides."""
        r = self.rng
        common = what or (NUMBERS[0] if r.random() < 0.4 else r.choice(NUMBERS))
        of = "for" if r.random() < 0.2 else "of"
        digits = r.choice((None, 5, 5))
        return [
            Fact(common if r.random() < 0.85 else r.choice(NUMBERS), n, self.namer.code(digits), of)
            for n in names
        ]

    def needles(self) -> Document:
        one_word = self.rng.choice((0.0, 0.15, 0.5, 1.0))
        facts = self._facts(self.namer.names(self.some(1, 8), one_word))
        asked = facts[: self.some(1, 5)]
        questions = [ask(self.rng, f) for f in asked]
        self.rng.shuffle(questions)
        return self.compose("needles", self.fact_pieces(facts), questions)

    def attributes(self) -> Document:
        """Several facts about each of a few names: name and kind decide."""
        r, facts = self.rng, []
        for name in self.namer.names(r.randint(1, 3)):
            for what in r.sample(NUMBERS, r.randint(1, 3)):
                facts.append(Fact(what, name, self.namer.code()))
            for topic in r.sample(sorted(VALUES), r.randint(0, 2)):
                facts.append(Fact(f"favourite {topic}", name, self.namer.value(topic)))
        r.shuffle(facts)
        questions = [ask(r, f) for f in facts[: self.some(1, 5)]]
        return self.compose("attributes", self.fact_pieces(facts), questions)

    def words(self) -> Document:
        """Answers that are words."""
        r, facts = self.rng, []
        names = self.namer.names(self.some(1, 7), r.choice((0.0, 0.3, 1.0)))
        topic = r.choice(sorted(VALUES))
        for name in names:
            if r.random() < 0.2:
                topic = r.choice(sorted(VALUES))
            facts.append(Fact(f"favourite {topic}", name, self.namer.value(topic)))
        questions = [ask(r, f) for f in facts[: self.some(1, 5)]]
        return self.compose("words", self.fact_pieces(facts), questions)

    def phonebook(self) -> Document:
        r = self.rng
        names = self.namer.names(self.some(6, 20), r.choice((0.0, 0.0, 0.3, 1.0)))
        what = "phone number" if r.random() < 0.7 else r.choice(NUMBERS)
        facts = [Fact(what, n, self.namer.code(5)) for n in names]
        questions = [ask(r, f) for f in r.sample(facts, min(len(facts), r.randint(2, 5)))]
        short = r.random() < 0.2
        lines = [
            Piece(
                f"{f.name}: {f.value}\n" if short else f"{f.sentence}\n",
                Role.PLAIN if f.asked else Role.UNASKED,
                FACT,
            )
            for f in facts
        ]
        prose = r.random() < 0.15
        room = self.n_tokens - 4 - sum(self.size(q.text) for q in questions)
        kept: list[Piece] = []
        asked_cost = sum(self.size(p.text) for p in lines if p.role is Role.PLAIN)
        room -= asked_cost
        for line in lines:
            cost = 0 if line.role is Role.PLAIN else self.size(line.text)
            if cost <= room:
                room -= cost
                kept.append(line)
        before = [*self.filler(room), Piece("\n", Role.FILLER)] if prose and room > 40 else []
        return Document("phonebook", before + kept, questions)

    def reverse(self) -> Document:
        """Which name has a code."""
        r = self.rng
        facts = self._facts(self.namer.names(self.some(1, 6), 0.3), r.choice(NUMBERS))
        questions = []
        for f in facts[: self.some(1, 4)]:
            f.asked = True
            q = Piece("\n", Role.PLAIN, cut=True)
            q.add(f"Whose {f.what} is {f.value}? The {f.what} {f.of}")
            q.add(f" {f.name}", ANSWER, answer=True).add(" is", STOP)
            questions.append(q.add(f" {f.value}", RESTATED).add(".", STOP))
        return self.compose("reverse", self.fact_pieces(facts), questions)

    def track(self) -> Document:
        """Names that stand for names."""
        r = self.rng
        hops = r.choices((1, 2, 3, 4), (4, 3, 2, 2))[0]
        names = self.namer.names(hops + 1 + self.some(0, 6), r.choice((0.0, 0.2, 0.6)))
        chain, others = names[: hops + 1], names[hops + 1 :]
        links = [Fact("alias", a, b) for a, b in zip(chain, chain[1:])]
        last = Fact("secret code", chain[-1], self.namer.code(5))
        extra: list[Fact] = []
        while len(others) > 1:
            a, b = others.pop(), others[-1]
            code = Fact("secret code", a, self.namer.code(5))
            extra.append(Fact("alias", a, b) if r.random() < 0.6 else code)
        questions: list[Piece] = []
        for _ in range(r.randint(1, 3)):
            forms = {"spelled": 4, "unrolled": 3, "link": 3, "qa": 1, "silent": 4 * self.silent_hops}
            form = r.choices(list(forms), list(forms.values()))[0]
            if form == "link":
                questions.append(ask(r, r.choice(links)))
                continue
            for f in (*links, last):
                f.asked = True
            q = Piece("\n", Role.PLAIN, cut=True)
            if form == "silent":
                q.add(f"What is the secret code of the alias of {links[-1].name}?")
                q.add(f" The secret code of the alias of {links[-1].name} is")
                questions.append(q.add(f" {last.value}", ANSWER, answer=True).add(".", STOP))
                continue
            # `spelled` leaves open which step is next; in the others the model
            # writes the steps and must see for itself where the chain ends.
            step = 0.0
            if form == "spelled":
                q.add(f"What is the secret code of the alias of {chain[0]}?")
            elif form == "unrolled":
                q.add(f"Where does {chain[0]} lead?")
                step = STEP
            elif hops == 1:
                q.add(f"Question: What is the secret code of the alias of {chain[0]}?\nAnswer:")
                step = STEP
            else:
                q.add(f"Question: Where does {chain[0]} lead?\nAnswer:")
                step = STEP
            for f in links:
                q.add(" The alias of", step).add(f" {f.name}", RESTATED).add(" is", step)
                q.add(f" {f.value}", ANSWER, answer=True).add(".", STOP)
            q.add(" The secret code of", step).add(f" {last.name}", RESTATED).add(" is", step)
            questions.append(q.add(f" {last.value}", ANSWER, answer=True).add(".", STOP))
        return self.compose("track", self.fact_pieces([*links, last, *extra]), questions)

    def count(self) -> Document:
        """How many records there are; mostly they are numbered."""
        r = self.rng
        what = "record" if r.random() < 0.6 else r.choice(RECORDS)
        numbered = r.random() < 0.85
        short = r.random() < 0.5
        most = (self.n_tokens - 70) // (12 if short else 18)
        n = r.randint(1, min(9, most)) if not numbered or r.random() < 0.4 else r.randint(1, most)
        names = self.namer.names(n, 1.0 if short else 0.2)
        verb = "paid" if r.random() < 0.6 else r.choice(VERBS)
        facts = []
        for i, name in enumerate(names, 1):
            amount = self.namer.code(r.choice((2, 3)) if short else 5)
            piece = Piece(f" {what.capitalize()}", Role.PLAIN, FACT)
            if numbered:
                # Each number follows from the last one.
                piece.add(f" {i}", RESTATED).add(":", RESTATED)
            else:
                piece.add(":")
            facts.append(piece.add(f" {name} {verb} {amount}."))
        many = what[:-1] + "ies" if what == "entry" else what + "s"
        q = Piece("\n", Role.PLAIN, cut=True)
        if r.random() < 0.75:
            q.add(f"How many {many} are in the text? The number of {many} is")
        else:
            q.add(f"Question: How many {many} are in the text?\nAnswer:")
        q.add(f" {n}", ANSWER, answer=True).add(".", ANSWER)
        return self.compose("count", facts, [q], ordered=True)

    def passkey(self) -> Document:
        """A key in sentences that repeat."""
        r, key = self.rng, self.namer.code(5)
        what = r.choice(("pass key", "pass key", "passkey", "magic number", "secret number"))
        few = [p.text for p in self.filler(r.randint(24, 80)) if "\n" not in p.text]
        few = few or [" The road is long."]

        def repeated(room: int) -> list[Piece]:
            pieces, i = [], 0
            while (cost := self.size(few[i % len(few)])) <= room:
                pieces.append(Piece(few[i % len(few)], Role.FILLER, 0.02))
                room -= cost
                i += 1
            return pieces

        fact = Piece(f" The {what} is {key}.", Role.PLAIN, FACT)
        if r.random() < 0.6:
            fact.add(f" Remember it. {key} is the {what}.")
        q = Piece("\n", Role.PLAIN, cut=True).add(f"What is the {what}?")
        if r.random() < 0.7:
            q.add(f" The {what} is")
        else:
            q = Piece("\n", Role.PLAIN, cut=True).add(f"Question: What is the {what}?\nAnswer:")
        q.add(f" {key}", ANSWER, answer=True).add(".", STOP)
        return self.compose("passkey", [fact], [q], repeated)

    def repeats(self) -> Document:
        """Text that comes a second time, far away."""
        r = self.rng
        if r.random() < 0.5:
            text = " " + " ".join(self.namer.word() for _ in range(r.randint(8, 40))) + "."
        else:
            text = "".join(p.text for p in self.filler(r.randint(40, 120)))
        text = text.replace("\n", " ")
        size = self.size(text)
        copies = max(1, min(3, (self.n_tokens - 8) // max(1, size) - 1))
        again = [Piece("\n", Role.PLAIN, cut=True).add(text.strip(), COPY) for _ in range(copies)]
        return self.compose("repeats", [Piece(text, Role.PLAIN)], again)

    def prose(self) -> Document:
        pieces = self.filler(self.n_tokens - 4)
        for p in pieces:
            p.weight = 0.5
        return Document("prose", pieces, [])
