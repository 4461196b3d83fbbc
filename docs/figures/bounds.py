"""Draw ``bounds.svg``: what restricting actions to the top-p set costs, exactly, on a token MDP.

Run ``python docs/figures/bounds.py [FOLDER]``; the file goes next to this script or into FOLDER.
Steps in the largest gap are cycles of a few sharp states; there the gap comes close to kappa.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from tdistill.core import kappa
from tdistill.tabular import (
    TokenMDP,
    per_state_gap,
    policy_evaluation,
    project_policy,
    random_mdp,
    soft_optimal_q,
    soft_policy,
    top_p_mask,
    with_teacher,
)

STATES, VOCABULARY, DISCOUNT = 400, 50, 0.99
TICKS = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999]


def peaked_teacher() -> TokenMDP:
    """Normal logits, sharp in most states and nearly flat in some, as a language model's are."""
    generator = torch.Generator().manual_seed(0)
    mdp = random_mdp(
        STATES,
        VOCABULARY,
        discount=DISCOUNT,
        reward_scale=1.0,
        end_share=0.01,
        generator=generator,
    )
    sharpness = 1.0 + 5.0 * torch.rand(STATES, 1, generator=generator, dtype=torch.float64)
    return with_teacher(mdp, sharpness * mdp.reward)


def curves(mdp: TokenMDP, grid: list[float]) -> dict[str, list[float]]:
    """Every curve of the figure, in nats, at each p of the grid."""
    optimal = soft_optimal_q(mdp, mdp.full_vocabulary)
    teacher = soft_policy(optimal, mdp.full_vocabulary)
    found: dict[str, list[float]] = {
        name: [] for name in ("kappa", "gap", "bound_max", "bound_mean", "set_gap", "size")
    }
    for set_top_p in grid:
        allowed = top_p_mask(teacher, set_top_p)
        bound = per_state_gap(mdp, teacher, allowed)[allowed]
        projected = policy_evaluation(mdp, project_policy(teacher, allowed))
        found["kappa"].append(kappa(set_top_p, DISCOUNT))
        found["gap"].append(float((optimal - projected).abs()[allowed].max()))
        found["bound_max"].append(float(bound.max()))
        found["bound_mean"].append(float(bound.mean()))
        set_optimal = soft_optimal_q(mdp, allowed)
        found["set_gap"].append(float((optimal - set_optimal).abs()[allowed].max()))
        found["size"].append(float(allowed.sum(1).double().mean()))
    return found


def draw(mdp: TokenMDP, path: Path) -> None:
    """Write the figure, against 1 - p on a logarithmic axis labelled with p."""
    fine = [1 - 10 ** (-exponent / 20) for exponent in range(6, 61)]
    lines, marks = curves(mdp, fine), curves(mdp, TICKS)
    left_out, marks_at = [1 - p for p in fine], [1 - p for p in TICKS]

    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "bounds"})
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    # Okabe and Ito's colours, told apart by line style and marker as well.
    axes.plot(
        left_out, lines["kappa"], color="#000000", ls="--", label=r"$\kappa$(p), Prop 2 and 4"
    )
    axes.plot(left_out, lines["bound_max"], color="#0072B2", label="per-state bound (3.3), largest")
    axes.plot(
        marks_at, marks["gap"], color="#0072B2", ls="", marker="o", mfc="white", ms=8,
        label="true gap of the projected teacher, sup |Q* $-$ Q$^{proj}$|",
    )  # fmt: skip
    axes.plot(
        left_out, lines["bound_mean"], color="#009E73", ls=":", lw=2,
        label="per-state bound (3.3), mean",
    )  # fmt: skip
    axes.plot(
        left_out, lines["set_gap"], color="#D55E00", ls="-.",
        label="true gap of the set's optimum, sup |Q* $-$ Q$_p$*|",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(0.55, 0.0009), ylabel="loss of Q in nats")
    axes.set_xticks(
        marks_at, [f"{p:g}\n{size:.1f}" for p, size in zip(TICKS, marks["size"], strict=True)]
    )
    axes.minorticks_off()
    axes.set_xlabel("set mass p, and below it the mean number of tokens in the set")
    axes.set_title(
        f"What leaving out the tail costs: {STATES} states, {VOCABULARY} tokens, "
        f"$\\gamma$ = {DISCOUNT}",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    draw(peaked_teacher(), folder / "bounds.svg")
