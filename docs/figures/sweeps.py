"""Draw ``sums.svg`` or ``stories.svg``: quality against entropy or diversity, by temperature.

Run ``PYTHONPATH=studies python docs/figures/sweeps.py NAME RUN SEEDS [FOLDER]`` after
``tdistill run studies/smollm2-arithmetic.yaml --out RUN`` (sums) or ``studies/stories.yaml``; the
file goes next to this script or into FOLDER. Every point is a temperature, from the sharpest to 1;
thin lines are training seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tables import judged

from tdistill.evaluation.intervals import Sample

# Okabe and Ito's colours, told apart by marker as well.
KD: dict[str, Any] = {"color": "#000000", "marker": "o"}
TILTED: dict[str, Any] = {"color": "#D55E00", "marker": "D"}
FILTERED: dict[str, Any] = {"color": "#0072B2", "marker": "s"}
SHUFFLED: dict[str, Any] = {"color": "#009E73", "marker": "^"}
KEPT: dict[str, Any] = {"color": "#CC79A7", "marker": "v"}


class Drawing(NamedTuple):
    """What is drawn against what, of which models."""

    x: str
    y: str
    axes: dict[str, Any]
    models: dict[str, tuple[str, dict[str, Any]]]


DRAWINGS = {
    "sums": Drawing(
        "entropy",
        "verified",
        {
            "xlabel": "entropy of a token, nats",
            "ylabel": "right answers",
            "ylim": (0.3, 1.0),
            "xlim": (0, None),
        },
        {
            "value_tilted_kd": ("values of what the student can do", TILTED),
            "kd": ("kd", KD),
            "filtered": ("kd on likelier rows", FILTERED),
            "shuffled": ("values, returns shuffled", SHUFFLED),
        },
    ),
    "stories": Drawing(
        "bigram_entropy",
        "teacher_nll",
        {"xlabel": "entropy of the bigrams of all responses, nats", "ylabel": "teacher NLL, nats"},
        {
            "kd": ("kd", KD),
            "filtered": ("kd on likelier rows", FILTERED),
            "folded_half": ("values in the output layer", TILTED),
            "kept_half": ("the same, token frequencies kept", KEPT),
            "kept_shuffled": ("frequencies kept, returns shuffled", SHUFFLED),
        },
    ),
}


def curve(record: dict[str, Any], drawing: Drawing) -> np.ndarray:
    """Both quantities at each temperature [2, points]."""
    return np.array([[value(point, n) for point in record["sweep"]] for n in drawing[:2]])


def value(point: dict[str, Any], name: str) -> float:
    """Of all responses together, or the mean over prompts."""
    if name in point["together"]:
        return point["together"][name]
    return Sample.from_dict(point["per_prompt"][name]).mean


def main() -> None:
    name, run, seeds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    folder = Path(sys.argv[4]) if len(sys.argv) > 4 else Path(__file__).parent
    found, drawing = judged(run, seeds), DRAWINGS[name]
    plt.rcParams |= {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, (text, style) in drawing.models.items():
        curves = [curve(record, drawing) for record in found[label]]
        for one in curves:
            axes.plot(*one, color=style["color"], lw=0.6, alpha=0.4)
        axes.plot(*np.mean(curves, axis=0), **style, lw=1.8, ms=5, label=text)
    axes.set(**drawing.axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
