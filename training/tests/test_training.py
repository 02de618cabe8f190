"""Quick checks of the data and of the optimizer: `python -m unittest` in `training/`."""

from __future__ import annotations

import random
import re
import unittest
from dataclasses import replace

import torch

from kivtrain.batches import make_batch
from kivtrain.config import CONFIGS, Config
from kivtrain.corpus import Corpus, held_out, name_words
from kivtrain.documents import Document, Writer
from kivtrain.grow import grow
from kivtrain.model import Model
from kivtrain.optim import orthogonal
from kivtrain.tokenizer import END_ID, START_ID, Vocabulary


def corpus() -> Corpus:
    lists = name_words()
    words = [w.lower() for w in lists["TRAIN_FIRST"]]
    return Corpus(
        prose={"generated": ["The ink was dry, and the miller slept.", "Nobody came by.", ""] * 50},
        held_out=["The road was long.", ""],
        words=[w for w in words if not held_out(w)],
        held_out_words=["kettle", "ladder"],
        first=lists["TRAIN_FIRST"],
        second=lists["TRAIN_SECOND"],
        forbidden=frozenset(w.lower() for w in lists["EVAL_FIRST"] + lists["EVAL_SECOND"]),
    )


def text(doc: Document) -> str:
    return "".join(p.text for p in doc.body + doc.questions)


CORPUS = corpus()
VOCABULARY = Vocabulary.train([*CORPUS.words, *CORPUS.prose["generated"]], 400)
TOKENIZER = VOCABULARY.build()


class Documents(unittest.TestCase):
    def test_no_evaluation_name(self) -> None:
        writer = Writer(CORPUS, TOKENIZER, random.Random(1), 384)
        for kind in writer.makers:
            for _ in range(30):
                words = re.findall(r"[a-z]+", text(writer.write(kind)).lower())
                self.assertTrue(CORPUS.forbidden.isdisjoint(words), kind)

    def test_answers_are_in_the_text(self) -> None:
        writer = Writer(CORPUS, TOKENIZER, random.Random(2), 512)
        for kind in ("needles", "attributes", "words", "phonebook", "reverse", "track", "passkey"):
            for _ in range(30):
                doc = writer.write(kind)
                body = "".join(p.text for p in doc.body)
                for q in doc.questions:
                    for m in q.marks:
                        if m.answer:
                            self.assertIn(q.text[m.start : m.end].strip(), body)

    def test_counts(self) -> None:
        writer = Writer(CORPUS, TOKENIZER, random.Random(3), 384)
        for _ in range(30):
            doc = writer.write("count")
            n = re.search(r"(\d+)\.$", doc.questions[0].text)
            assert n is not None
            records = [p for p in doc.body if p.role.name == "PLAIN"]
            self.assertEqual(int(n[1]), len(records))

    def test_digits_and_pieces(self) -> None:
        sample = "The pin of A is 48213.\nWhat is it? It's 7."
        encoded = TOKENIZER.encode(sample)
        self.assertEqual(TOKENIZER.decode(encoded.ids), sample)
        pieces = [sample[a:b] for a, b in encoded.offsets]
        self.assertEqual([p for p in pieces if p.isdigit()], list("482137"))
        self.assertTrue(all(p.strip().isalpha() or not re.search("[A-Za-z]", p[1:]) for p in pieces))


class Batches(unittest.TestCase):
    def test_a_seed_gives_one_batch(self) -> None:
        kinds = ["needles", "track", "count"]
        a, b = (make_batch(CORPUS, TOKENIZER, "s", kinds, 256, 4096.0) for _ in range(2))
        self.assertTrue(torch.equal(a.tokens, b.tokens))
        self.assertTrue(torch.equal(a.positions, b.positions))
        self.assertTrue((a.tokens[:, 0] == START_ID).all())
        padding = a.tokens[:, 1:] == END_ID
        self.assertTrue(((a.positions.diff() >= 1) | padding).all())

    def test_answers_weigh_in_where_they_are_predicted(self) -> None:
        b = make_batch(CORPUS, TOKENIZER, "t", ["needles"] * 4, 320, 1.0)
        rows, cols = (b.answers > 0).nonzero(as_tuple=True)
        self.assertGreater(len(rows), 0)
        following = TOKENIZER.decode(b.tokens[rows, cols + 1].tolist())
        self.assertRegex(following, r"^[ \d]+$")
        self.assertTrue((b.weights[rows, cols] == 1.0).all())

    def test_bias_is_causal_and_spares_facts(self) -> None:
        b = make_batch(CORPUS, TOKENIZER, "u", ["needles"] * 4, 320, 4096.0)
        bias = b.bias()[:, 0]
        self.assertTrue(torch.isinf(bias[:, 0, 1:]).all())
        self.assertTrue((bias[:, -1, 0] == 0).all())
        self.assertTrue((bias.diagonal(dim1=1, dim2=2) == 0).all())


class Training(unittest.TestCase):
    def test_orthogonal(self) -> None:
        torch.manual_seed(0)
        u = orthogonal(torch.randn(64, 32))
        singular = torch.linalg.svdvals(u)
        self.assertTrue(((singular > 0.5) & (singular < 1.5)).all())

    def test_configs(self) -> None:
        for config in CONFIGS.values():
            self.assertEqual(Config.from_json(config.to_json()), config)
            self.assertAlmostEqual(sum(config.mix.values()), 1.0)
            self.assertAlmostEqual(sum(config.first_mix.values()), 1.0)
        size = sum(p.numel() for p in Model(CONFIGS["tiny"].shape).parameters())
        self.assertLess(2 * size, 6_000_000)
        with torch.device("meta"):
            size = sum(p.numel() for p in Model(CONFIGS["small"].shape).parameters())
        self.assertLess(2 * size, 20_000_000)

    def test_bias_of_zero_is_plain_attention(self) -> None:
        shape = CONFIGS["smoke"].shape
        model = Model(shape)
        tokens = torch.randint(0, shape.vocab, (2, 20))
        at = torch.arange(20).expand(2, -1) * 7
        causal = torch.zeros(2, 1, 20, 20).masked_fill(
            torch.ones(20, 20, dtype=torch.bool).triu(1), -torch.inf
        )
        ones = torch.ones(shape.n_layer, 2, shape.n_head)
        with torch.no_grad():
            plain, biased = model.hidden(tokens, at), model.hidden(tokens, at, causal, ones)
        self.assertTrue(torch.allclose(plain, biased, atol=1e-4))

    def test_a_grown_model_begins_as_the_smaller_one(self) -> None:
        shape = CONFIGS["smoke"].shape
        larger = replace(shape, n_layer=4, n_head=6, n_kv=3, d_ff=300)
        tokens = torch.randint(0, shape.vocab, (2, 20))
        at = torch.arange(20).expand(2, -1) * 7
        model = Model(shape)
        grown = grow(model, larger)
        with torch.no_grad():
            was, now = (m.logits(m.hidden(tokens, at)) for m in (model, grown))
        self.assertTrue(torch.allclose(was, now, atol=1e-4))
        # Every matrix that leads out of what is new hears of mistakes.
        grown.logits(grown.hidden(tokens, at)).square().sum().backward()
        for block in grown.blocks:
            for p in (block.attn.out.weight, block.down.weight):
                assert p.grad is not None
                self.assertTrue((p.grad.abs().sum(0) > 0).all())
        with self.assertRaises(ValueError):
            grow(model, replace(larger, d_model=256))


if __name__ == "__main__":
    unittest.main()
