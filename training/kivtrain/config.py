"""What is trained: shapes, schedules and the mix of tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The size of a model (llama.cpp architecture `qwen3`)."""

    n_layer: int = 4
    d_model: int = 256
    n_head: int = 4
    n_kv: int = 2
    head_dim: int = 64
    d_ff: int = 512
    vocab: int = 2048
    rope_theta: float = 1e12
    norm_eps: float = 1e-6
    n_ctx: int = 1 << 20


# Shares of documents by kind (see documents.py).
MIX: dict[str, float] = {
    "needles": 0.30,
    "attributes": 0.10,
    "words": 0.08,
    "phonebook": 0.14,
    "reverse": 0.04,
    "track": 0.11,
    "count": 0.06,
    "passkey": 0.05,
    "repeats": 0.04,
    "prose": 0.08,
}

# At first mostly text that comes again, and look-ups: copying is learned from the
# first, where every token says something about it, and look-ups follow from that.
# With all tasks at once retrieval starts late.
FIRST_MIX: dict[str, float] = {
    "needles": 0.32,
    "phonebook": 0.20,
    "repeats": 0.45,
    "prose": 0.03,
}


@dataclass(frozen=True)
class Config:
    """One training run."""

    name: str
    shape: Shape = field(default_factory=Shape)
    seed: int = 1
    steps: int = 3600
    # Sequences per step and tokens per sequence; every `long_every`-th step has
    # the same number of tokens in sequences `long_factor` times as long.
    batch: int = 16
    seq_len: int = 384
    long_every: int = 6
    long_factor: int = 2
    # Sequences per forward pass (memory); the rest is accumulated.
    micro_batch: int = 16
    lr_muon: float = 0.02
    lr_adam: float = 3e-3
    warmup: int = 50
    # Share of the steps after which the learning rate falls to `lr_end` of it.
    decay_from: float = 0.5
    lr_end: float = 0.02
    # Largest number of tokens that one filler token stands for, and the share
    # of the steps over which it grows to that.
    dilution: float = 4096.0
    # It begins to grow after this share of them.
    dilution_from: float = 0.10
    dilution_ramp: float = 0.33
    # Whether positions jump, so that distances up to `n_ctx` occur in short sequences.
    jumps: bool = True
    # Attention heads left out at random in the layers from a share of them on, one by
    # one, with all that share a KV head, or a layer's all: no single head may do all the
    # retrieval. Grows from 0 between two shares of the steps.
    drop_layers_from: float = 0.5
    head_drop: float = 0.12
    group_drop: float = 0.08
    attn_drop: float = 0.05
    drop_from: float = 0.30
    drop_full: float = 0.50
    # Share of the steps with FIRST_MIX only, and the share over which MIX takes over.
    first_until: float = 0.20
    mixed_from: float = 0.35
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    first_mix: dict[str, float] = field(default_factory=lambda: dict(FIRST_MIX))
    # Two-step questions answered at once, without writing the first step.
    silent_hops: float = 0.0
    # Whether the run begins with a smaller model, which becomes a part of this one.
    grows: bool = False
    export: str = "f16"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Config":
        return Config(**{**data, "shape": Shape(**data["shape"])})


_TINY = Config(name="tiny")

CONFIGS: dict[str, Config] = {
    # 2.9 M parameters, 5.84 MB in f16.
    "tiny": _TINY,
    "tiny-2": replace(_TINY, name="tiny-2", seed=2),
    # From the weights of a model of the same shape: adds tasks, keeps retrieval.
    "tiny-tasks": replace(
        _TINY,
        name="tiny-tasks",
        seed=3,
        steps=900,
        lr_muon=0.008,
        lr_adam=1e-3,
        warmup=30,
        decay_from=0.4,
        dilution_from=0.0,
        dilution_ramp=0.0,
        drop_from=0.05,
        drop_full=0.25,
        first_until=0.0,
        mixed_from=0.0,
    ),
    # Trained for 1536 tokens, as usual models are for some thousands: shows what becomes
    # of positions past that.
    "tiny-short": replace(
        _TINY,
        name="tiny-short",
        shape=replace(_TINY.shape, rope_theta=1e4, n_ctx=1536),
        seed=6,
        steps=1500,
        long_factor=4,
        jumps=False,
        dilution_from=0.5,
        dilution_ramp=0.25,
        drop_from=0.55,
        drop_full=0.70,
        decay_from=0.6,
        first_until=0.45,
        mixed_from=0.60,
    ),
    # Grown from `tiny` (see grow.py), a harder judge: three times its size, and so many
    # heads and layers left out that retrieval has to be spread. 9.2 M parameters.
    "small": Config(
        name="small",
        shape=replace(_TINY.shape, n_layer=8, n_head=6, n_kv=3, d_ff=1024),
        grows=True,
        seed=4,
        steps=850,
        long_every=5,
        long_factor=3,
        lr_muon=0.01,
        lr_adam=1e-3,
        decay_from=0.4,
        dilution=8192.0,
        dilution_from=0.0,
        dilution_ramp=0.0,
        drop_layers_from=0.25,
        head_drop=0.15,
        group_drop=0.10,
        attn_drop=0.15,
        drop_from=0.04,
        drop_full=0.20,
        first_until=0.0,
        mixed_from=0.0,
        silent_hops=0.15,
        mix={
            "needles": 0.22,
            "attributes": 0.12,
            "words": 0.08,
            "phonebook": 0.14,
            "reverse": 0.08,
            "track": 0.12,
            "count": 0.06,
            "passkey": 0.04,
            "repeats": 0.04,
            "prose": 0.10,
        },
    ),
    # Some minutes on two cores: shows that the program works, not that a model does.
    "smoke": Config(
        name="smoke",
        shape=Shape(n_layer=2, d_model=128, n_head=4, n_kv=2, head_dim=32, d_ff=256, vocab=1024),
        seed=5,
        steps=300,
        batch=16,
        seq_len=192,
        long_every=0,
        dilution=64.0,
        warmup=20,
        mix=dict(FIRST_MIX),
        head_drop=0.0,
        group_drop=0.0,
        attn_drop=0.0,
    ),
}
