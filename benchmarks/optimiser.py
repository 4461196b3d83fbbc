"""What AdamW over the whole embedding costs, as a share of a training step.

    python benchmarks/optimiser.py                        # a table
    python benchmarks/optimiser.py --json results.json    # the same as numbers
    python benchmarks/optimiser.py --layers 10 --tokens 4096 --vocabularies 49152 151936 262144

Plain modules of SmolLM2-135M's sizes: decoder layers (forward and backward are timed, without
head and loss) and a tied embedding. Per vocabulary: one AdamW update by a loop over parameters, by
``foreach`` and fused, of everything and of the layers alone (a frozen embedding); and what a lazy
update, which leaves out rows without a gradient, would make of the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, KEY_HEADS, INNER = 576, 9, 3, 1536
FORMS: dict[str, Any] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SETTINGS: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.01}


class Block(nn.Module):
    """A decoder layer: grouped-query attention and a gated linear unit, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        width = HIDDEN // HEADS
        self.norms = nn.ModuleList(nn.RMSNorm(HIDDEN) for _ in range(2))
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KEY_HEADS) * width, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of every position."""
        sizes = [HEADS, KEY_HEADS, KEY_HEADS]
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (sum(sizes), -1)).transpose(1, 2)
        q, k, v = heads.split(sizes, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def update_seconds(parameters: Iterable[Tensor], form: str, repeats: int) -> float:
    """Time of one update of parameters that have gradients."""
    return seconds(torch.optim.AdamW(parameters, **SETTINGS, **FORMS[form]).step, repeats)


def lazy_difference(rows: int = 200, updates: int = 100, touched: float = 0.02) -> float:
    """How far a lazy update is from AdamW, as a share of how far AdamW moves the weights.

    Every update touches other rows. Rows without a gradient move in AdamW, by what is left of
    their first moment and by weight decay; lazily, they stay.
    """
    generator = torch.Generator().manual_seed(0)
    start = 0.04 * torch.randn(rows, HIDDEN, generator=generator)
    exact = start.clone().requires_grad_()
    lazy = [nn.Parameter(row.clone()) for row in start]
    exactly, lazily = (torch.optim.AdamW(p, **SETTINGS, fused=True) for p in ([exact], lazy))
    for _ in range(updates):
        hit = torch.rand(rows, 1, generator=generator) < touched
        gradient = torch.randn(rows, HIDDEN, generator=generator) * hit
        exact.grad = gradient
        for row, part, used in zip(lazy, gradient, hit, strict=True):
            row.grad = part if used else None
        exactly.step()
        lazily.step()
    with torch.no_grad():
        return float((torch.stack(list[Tensor](lazy)) - exact).norm() / (exact - start).norm())


def measure(layers: int, tokens: int, vocabularies: list[int], repeats: int) -> dict:
    """All times, seconds."""
    blocks = nn.Sequential(*(Block() for _ in range(layers)))
    inputs = torch.randn(tokens // 256, 256, HIDDEN)
    step = seconds(lambda: blocks(inputs).square().mean().backward(), repeats)
    rows = []
    for vocabulary in vocabularies:
        embedding = nn.Parameter(0.04 * torch.randn(vocabulary, HIDDEN))
        embedding.grad = torch.zeros_like(embedding)
        embedding.grad[:1_000] = 1e-3  # the rows that a step has touched
        whole = [*blocks.parameters(), embedding]
        row = {form: update_seconds(whole, form, repeats) for form in FORMS}
        row |= {"frozen": update_seconds(blocks.parameters(), "fused", repeats)}
        row |= {"clip": seconds(lambda p=whole: nn.utils.clip_grad_norm_(p, 1.0), repeats)}
        rows.append({"vocabulary": vocabulary, **row})
    return {
        "layers": layers,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blocks": step,
        "updates": rows,
        "lazy_difference": lazy_difference(),
    }


def table(found: dict) -> str:
    """The numbers as text: milliseconds, and shares of a step of the blocks."""
    names = [*FORMS, "frozen", "clip"]
    lines = [
        f"{found['layers']} layers, {found['tokens']} tokens, {found['threads']} threads: forward "
        f"and backward of the blocks {found['blocks']:.2f} s",
        "vocabulary" + "".join(f"{name:>20}" for name in names),
    ]
    for row in found["updates"]:
        cells = [f"{1e3 * row[n]:9.1f} ms {row[n] / found['blocks']:6.1%}" for n in names]
        lines.append(f"{row['vocabulary']:10d}" + "".join(f"{cell:>20}" for cell in cells))
    share = found["lazy_difference"]
    lines.append(f"lazy rows: {share:.0%} of the way that AdamW moves the embedding is missed")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4096, help="a multiple of 256")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49_152, 151_936, 262_144])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = measure(options.layers, options.tokens, options.vocabularies, options.repeats)
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
