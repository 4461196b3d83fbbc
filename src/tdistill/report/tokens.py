"""Tokens of a response coloured by implied reward (4.1)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tdistill.report.measures import model_name, number
from tdistill.report.result import Trace

# The strongest tint keeps the page's ink readable on it in both themes.
_STRONGEST = 0.62


@dataclass(frozen=True)
class TokenView:
    """One token as drawn: ``sign`` is ``pos``, ``neg`` or ``none``, ``strength`` 0 to 1."""

    text: str
    breaks: int
    blank: bool
    sign: str
    strength: float
    hint: str


@dataclass(frozen=True)
class TraceView:
    """One response as drawn."""

    prompt: str
    model: str
    tokens: list[TokenView]
    mean: str


def reward_scale(traces: Iterable[Trace]) -> float:
    """The reward, in nats, at which the colour is full: 95% of all steps are no larger."""
    sizes = sorted(
        abs(r) for t in traces for r in t.implied_reward if r is not None and math.isfinite(r)
    )
    if not sizes or sizes[-1] == 0:
        return 1.0
    return sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))] or sizes[-1]


def trace_view(trace: Trace, scale: float) -> TraceView:
    """Turn a trace into drawable tokens.

    Args:
        trace: tokens with reward and value in nats.
        scale: the reward at which the colour is full, in nats.

    Returns:
        The view; line breaks and blanks that stand alone are made visible.
    """
    steps = zip(trace.tokens, trace.implied_reward, trace.value, strict=True)
    tokens = [_token(i, *step, scale) for i, step in enumerate(steps)]
    known = [r for r in trace.implied_reward if r is not None and math.isfinite(r)]
    mean = number(sum(known) / len(known), 2) if known else ""
    return TraceView(trace.prompt, model_name(trace.model), tokens, mean)


def _token(
    step: int, token: str, reward: float | None, value: float | None, scale: float
) -> TokenView:
    shown = (
        f"implied reward {number(reward, 2)} nats" if reward is not None else "no implied reward"
    )
    held = f", V {number(value, 2)} nats" if value is not None else ""
    text, breaks = visible(token)
    known = reward if reward is not None and not math.isnan(reward) else None
    size = 0.0 if known is None else min(1.0, abs(known) / scale)
    return TokenView(
        text=text,
        breaks=breaks,
        blank=not token.strip(),
        sign="none" if known is None else "neg" if known < 0 else "pos",
        strength=round(_STRONGEST * size, 3),
        hint=f"step {step}: {token!r}: {shown}{held}",
    )


def visible(token: str) -> tuple[str, int]:
    """A token's text with invisible characters made visible, and how many lines to break after it.

    Example:
        >>> visible(" the"), visible("\\n\\n"), visible("  "), visible("")
        ((' the', 0), ('⏎⏎', 2), ('··', 0), ('∅', 0))
    """
    if not token:
        return "\N{EMPTY SET}", 0
    lines = token.replace("\r\n", "\n").replace("\r", "\n")
    breaks = lines.count("\n") if lines.endswith("\n") else 0
    if not lines.strip(" "):
        return "\N{MIDDLE DOT}" * len(lines), 0
    text = lines.replace("\n", "\N{RETURN SYMBOL}").replace("\t", "\N{RIGHTWARDS ARROW}")
    # Control characters have no glyph of their own: their code stands in for them.
    return re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\x{ord(m[0]):02x}", text), breaks
