"""A page of responses under their prompts, tokens coloured by implied reward (4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tdistill import __version__
from tdistill.errors import without_controls
from tdistill.files import write_atomically
from tdistill.report.measures import number
from tdistill.report.page import templates
from tdistill.report.result import Trace
from tdistill.report.tokens import TokenView, reward_scale, trace_view

MOST_SHOWN = 200


@dataclass(frozen=True)
class _View:
    caption: str
    tokens: list[TokenView]


def write_rewards_page(
    records: Sequence[Mapping[str, Any]], path: Path, *, title: str, lines: Sequence[str] = ()
) -> Path:
    """Write the page: one HTML file without scripts, prompts in order, best response first.

    Args:
        records: rows of ``rewards.jsonl``, in any order.
        path: the HTML file to write.
        title: its heading.
        lines: sentences under the heading.

    Returns:
        ``path``.
    """
    place: dict[int, int] = {}
    for record in records:
        place.setdefault(record["prompt_number"], len(place))
    order = sorted(records, key=lambda r: (place[r["prompt_number"]], r["rank"]))
    shown = order[:MOST_SHOWN]
    traces = [_trace(record) for record in shown]
    scale = reward_scale(traces)
    views = [
        (record, _View(_caption(record), trace_view(trace, scale).tokens))
        for record, trace in zip(shown, traces, strict=True)
    ]
    page = (
        templates()
        .get_template("rewards.html.j2")
        .render(
            title=title,
            lines=lines,
            version=__version__,
            traces={
                "scale": number(scale, 2),
                "minus": number(-scale, 2),
                "prompts": [
                    (members[0][0]["prompt"], [view for _, view in members])
                    for members in (
                        list(group) for _, group in groupby(views, lambda v: v[0]["prompt_number"])
                    )
                ],
                "left_out": len(records) - len(shown),
            },
        )
    )
    write_atomically(path, without_controls(page))
    return path


def _trace(record: Mapping[str, Any]) -> Trace:
    return Trace(record["prompt"], "", record["tokens"], record["implied_reward"], record["value"])


def _caption(record: Mapping[str, Any]) -> str:
    def shown(name: str) -> str:
        return number(record[name], 2)

    parts = [
        f"rank {record['rank']}",
        f"{len(record['tokens'])} tokens" + ("" if record["ended"] else ", cut"),
        f"reward {shown('mean_reward')} nats a token, {shown('total_reward')} in all, "
        f"{shown('discounted_reward')} discounted",
        f"log-probability {shown('log_prob_per_token')} a token",
    ]
    if record["off_set_tokens"]:
        parts.append(f"{record['off_set_tokens']} tokens off the set")
    return "; ".join(parts)
