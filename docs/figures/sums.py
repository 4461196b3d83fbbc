"""Draw ``sums.svg``: right answers against entropy, of a run with a temperature sweep.

Run ``PYTHONPATH=studies python docs/figures/sums.py RUN SEEDS [FOLDER]`` after
``tdistill run studies/smollm2-arithmetic.yaml --out RUN``; the file goes next to this script or
into FOLDER. Every point is a temperature, from the sharpest to 1; thin lines are training seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tables import judged

from tdistill.evaluation.intervals import Sample

# Okabe and Ito's colours, told apart by marker as well.
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "value_tilted_kd": ("values of what the student can do", {"color": "#D55E00", "marker": "D"}),
    "kd": ("kd", {"color": "#000000", "marker": "o"}),
    "filtered": ("kd on likelier rows", {"color": "#0072B2", "marker": "s"}),
    "shuffled": ("values, returns shuffled", {"color": "#009E73", "marker": "^"}),
}


def curve(record: dict[str, Any]) -> np.ndarray:
    """Entropy and share of right answers at each temperature [2, points]."""
    names = ("entropy", "verified")
    points = [[Sample.from_dict(p["per_prompt"][n]).mean for n in names] for p in record["sweep"]]
    return np.array(points).T


def main() -> None:
    run, seeds = Path(sys.argv[1]), int(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(__file__).parent
    found = judged(run, seeds)
    plt.rcParams |= {"svg.hashsalt": "sums", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, (name, style) in STYLES.items():
        curves = [curve(record) for record in found[label]]
        for one in curves:
            axes.plot(*one, color=style["color"], lw=0.6, alpha=0.4)
        axes.plot(*np.mean(curves, axis=0), **style, lw=1.8, ms=5, label=name)
    axes.set(
        xlabel="entropy of a token, nats", ylabel="right answers", ylim=(0.3, 1.0), xlim=(0, None)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "sums.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
