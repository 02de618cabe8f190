"""The transformer, as llama.cpp runs architecture `qwen3`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Shape

EMBED_STD = 0.02
# Sizes of the common part in queries and keys that look back, by pair of dimensions,
# fastest first, where other dimensions' are about 1.
LOOK_BACK = (8.0, 8.0, 6.0, 6.0, 4.0)
# Weight of these pairs in the norms of queries and keys, where others' is 1.
SHARPER = 1.5
# Queries that attend together on a CPU.
ATTENTION_RUN = 128


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return ((wide * scale) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE, first half against second half. `x`: batch, heads, tokens, size."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with a bias that masks later keys. On a CPU in runs of queries, so that
    keys which all of a run may not see cost nothing."""
    t, size = q.shape[2], ATTENTION_RUN
    if q.is_cuda or t <= size:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    runs = []
    for start in range(0, t, size):
        end = min(start + size, t)
        mask = bias[:, :, start:end, :end]
        scores = q[:, :, start:end] @ k[:, :, :end].mT / math.sqrt(q.shape[-1])
        runs.append((scores + mask).softmax(-1).to(v.dtype) @ v[:, :, :end])
    return torch.cat(runs, dim=2)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.n_head * shape.head_dim, shape.n_kv * shape.head_dim
        self.q = nn.Linear(shape.d_model, q, bias=False)
        self.k = nn.Linear(shape.d_model, kv, bias=False)
        self.v = nn.Linear(shape.d_model, kv, bias=False)
        self.out = nn.Linear(q, shape.d_model, bias=False)
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, (b, t, _) = self.shape, x.shape
        q = self.q(x).view(b, t, s.n_head, s.head_dim)
        k = self.k(x).view(b, t, s.n_kv, s.head_dim)
        v = self.v(x).view(b, t, s.n_kv, s.head_dim).transpose(1, 2)
        q = rotate(rms_norm(q, self.q_norm, s.norm_eps).transpose(1, 2), cos, sin)
        k = rotate(rms_norm(k, self.k_norm, s.norm_eps).transpose(1, 2), cos, sin)
        group = s.n_head // s.n_kv
        return q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.project(x, cos, sin)
        if bias is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = biased_attention(q, k, v, bias.to(q.dtype))
        if keep is not None:
            y = y * keep.to(y.dtype)[:, :, None, None]
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.attn_norm = nn.Parameter(torch.ones(shape.d_model))
        self.attn = Attention(shape)
        self.ffn_norm = nn.Parameter(torch.ones(shape.d_model))
        self.gate = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.up = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        x = x + self.attn(rms_norm(x, self.attn_norm, self.eps), cos, sin, bias, keep)
        y = rms_norm(x, self.ffn_norm, self.eps)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.Parameter(torch.ones(shape.d_model))
        half = shape.head_dim // 2
        steps = torch.arange(half, dtype=torch.float64) * 2 / shape.head_dim
        self.register_buffer("freq", shape.rope_theta**-steps, persistent=False)
        for name, p in self.named_parameters():
            if name == "embed.weight":
                nn.init.normal_(p, std=EMBED_STD)
            elif p.dim() == 2:
                last = name.endswith(("attn.out.weight", "down.weight"))
                std = 1 / math.sqrt(p.shape[1])
                nn.init.normal_(p, std=std / math.sqrt(2 * shape.n_layer) if last else std)
        self.look_back()

    @torch.no_grad()
    def look_back(self) -> None:
        """Lets the first half of the first layer's heads begin with attention on the
        token before.

        Looking things up takes such a head, and below it is all that depends on
        position alone: without biases, and with few pairs of dimensions that turn
        fast enough to tell neighbours apart, it may take millions of tokens to come
        about. Embeddings get a common part, which changes no prediction, and queries
        and keys turn it into the fast pairs' dimensions, one step apart."""
        shape, attn = self.shape, self.blocks[0].attn
        common = torch.randint(0, 2, (shape.d_model,)) * 2.0 - 1
        self.embed.weight += common * EMBED_STD
        half, group = shape.head_dim // 2, shape.n_head // shape.n_kv
        # The common part is half the square of an embedding.
        to_common = common / shape.d_model * math.sqrt(2)
        for kv_head in range(shape.n_kv // 2):
            for pair, size in enumerate(LOOK_BACK):
                turn = shape.rope_theta ** (-2 * pair / shape.head_dim)
                row = kv_head * shape.head_dim + pair
                attn.k.weight[row] += size * to_common
                for head in range(kv_head * group, (kv_head + 1) * group):
                    row = head * shape.head_dim + pair
                    attn.q.weight[row] += size * math.cos(turn) * to_common
                    attn.q.weight[row + half] -= size * math.sin(turn) * to_common
        for norm in (attn.q_norm, attn.k_norm):
            for pair in range(len(LOOK_BACK)):
                norm[pair] = norm[pair + half] = SHARPER

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        turn = positions.to(torch.float64)[:, None, :, None] * self.freq
        return turn.cos().float(), turn.sin().float()

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """States after the last norm. `bias` (batch, 1, queries, keys) is added to
        attention logits and masks; `keep` (layers, batch, heads) scales heads."""
        x = self.embed(tokens)
        cos, sin = self.angles(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, bias, None if keep is None else keep[i])
        return rms_norm(x, self.norm, self.shape.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight)

    @torch.no_grad()
    def attention(self, tokens: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        """Attention probabilities (layers, batch, heads, keys) of one query per
        sequence, the one at index `at`, without any bias."""
        x = self.embed(tokens)
        cos, sin = self.angles(positions)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        after = torch.arange(tokens.shape[1], device=tokens.device)[None] > at[:, None]
        shares = []
        for block in self.blocks:
            q, k, _ = block.attn.project(
                rms_norm(x, block.attn_norm, self.shape.norm_eps), cos, sin
            )
            score = (q[rows, :, at][:, :, None] * k).sum(-1) / math.sqrt(self.shape.head_dim)
            shares.append(score.masked_fill(after[:, None], -math.inf).softmax(-1))
            x = block(x, cos, sin, None, None)
        return torch.stack(shares)
