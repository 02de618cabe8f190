"""A larger model that begins by computing what a smaller one does.

Every layer is followed by a copy of itself that adds nothing yet; new heads and new
feed-forward units add nothing yet either: the matrices that lead out of them are zero
(the idea is Net2Net's, Chen et al. 2015; here nothing is split and nothing has to be
divided). They learn what to add, beginning with what they then see."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .config import Shape
from .model import Block, Model


def _into(to: Tensor, part: Tensor) -> None:
    """Copies a matrix into the upper left of a larger one."""
    to[: part.shape[0], : part.shape[1]] = part


@torch.no_grad()
def _fill(block: Block, old: Block, adds: bool) -> None:
    """`old` inside `block`; without `adds` nothing comes out of it."""
    for name, p in block.named_parameters():
        part = old.get_parameter(name)
        if p.dim() == 1:
            p.copy_(part)
        elif name in ("attn.out.weight", "down.weight"):
            p.zero_()
            if adds:
                _into(p, part)
        else:
            _into(p, part)


def grow(small: Model, shape: Shape) -> Model:
    """A model of `shape` with the logits of `small`.

    `shape` has twice the layers, the same width, head size, vocabulary and query heads
    per KV head, and as many heads and feed-forward units or more."""
    old = small.shape
    kept = replace(shape, n_layer=old.n_layer, n_head=old.n_head, n_kv=old.n_kv, d_ff=old.d_ff)
    fits = (
        kept == replace(old, n_ctx=shape.n_ctx)
        and shape.n_layer == 2 * old.n_layer
        and shape.n_head * old.n_kv == old.n_head * shape.n_kv
        and shape.n_kv >= old.n_kv
        and shape.d_ff >= old.d_ff
    )
    if not fits:
        raise ValueError(f"{old} cannot grow to {shape}")
    model = Model(shape)
    with torch.no_grad():
        model.embed.weight.copy_(small.embed.weight)
        model.norm.copy_(small.norm)
    for i, block in enumerate(model.blocks):
        _fill(block, small.blocks[i // 2], adds=i % 2 == 0)
    return model
