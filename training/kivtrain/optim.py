"""Muon for matrices, Adam for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: five steps of the quintic
    Newton-Schulz iteration with the coefficients of Muon (K. Jordan, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if fast_bfloat16(g.device) else g.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # Matrices of one shape together.
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                moved = []
                for p in params:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    m = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    moved.append(p.grad.lerp(m, group["momentum"]))
                updates = orthogonal(torch.stack(moved))
                wide = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, updates):
                    p.add_(update, alpha=-group["lr"] * wide)


def optimizers(model: nn.Module, lr_muon: float, lr_adam: float) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.dim() == 2 and name != "embed.weight" else others).append(p)
    return [
        Muon(matrices, lr_muon),
        torch.optim.Adam(others, lr=lr_adam, betas=(0.9, 0.95), eps=1e-8),
    ]
