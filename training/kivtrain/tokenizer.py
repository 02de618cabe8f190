"""Byte-level BPE, one token a digit, cut as llama.cpp's `qwen2` pre-tokenizer does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

END, START = "<|endoftext|>", "<|bos|>"
END_ID, START_ID = 0, 1

# The pattern of llama.cpp's LLAMA_VOCAB_PRE_TYPE_QWEN2.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file stores of a tokenizer."""

    tokens: list[str]
    merges: list[str]

    def build(self) -> Tokenizer:
        ids = {token: i for i, token in enumerate(self.tokens)}
        pairs = [tuple(merge.split(" ")) for merge in self.merges]
        return _with_pieces(Tokenizer(BPE(vocab=ids, merges=pairs)))

    @staticmethod
    def train(texts: Iterable[str], size: int) -> "Vocabulary":
        tokenizer = _with_pieces(Tokenizer(BPE()))
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END, START],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        # The library shows merges only in its JSON form.
        import json

        model = json.loads(tokenizer.to_str())["model"]
        tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        return Vocabulary(tokens, merges)


def _with_pieces(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
