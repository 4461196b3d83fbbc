"""Draw ``learnability.svg``: what values gain over cloning, exactly, as ways get unequal.

Run ``python docs/figures/learnability.py [FOLDER]``; the file goes next to this script or into
FOLDER, the numbers to the terminal. The teacher answers in one of two ways, which the first token
tells (two tokens a way). The student has one row for each way and position, the teacher one for
each prefix: the logits of the row and noise, of scale 1 - u in one way and 1 + u in the other. With
inequality u = 0 both are as hard, with 1 the student can follow the one as it is. In generic trees
the states of a position share two rows at random.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from tdistill.tabular import (
    TERMINAL,
    TiedStates,
    TokenMDP,
    best_cloner,
    best_tied_policy,
    expected_sum,
    occupancy,
    prefix_tree,
    soft_policy,
    soft_return,
    state_kl,
    with_log_teacher,
)

VOCABULARY, DEPTH, TREES, STARTS = 5, 4, 8, 3
INEQUALITIES = [0.0, 0.25, 0.5, 0.75, 1.0]
TEMPERATURES = [0.2 + 0.05 * step for step in range(21)]
KD, TUNED, LOCAL, BEST = "kd", "kd, best temperature", "reverse KL on own rows", "best of the class"
# Okabe and Ito's colours, told apart by line style and marker as well.
STYLES: dict[str, dict[str, Any]] = {
    KD: {"color": "#000000", "ls": "-", "marker": "o"},
    TUNED: {"color": "#0072B2", "ls": ":", "marker": "s"},
    LOCAL: {"color": "#009E73", "ls": "--", "marker": "^"},
    BEST: {"color": "#D55E00", "ls": "-", "marker": "D"},
}


def tree() -> tuple[TokenMDP, Tensor, Tensor]:
    """All responses, with the position of each prefix and its way, 1 or 2, told by token one."""
    nothing = torch.Generator()
    mdp = prefix_tree(VOCABULARY, DEPTH, discount=1.0, reward_scale=0.0, generator=nothing)
    position, way = torch.zeros(2, mdp.num_states, dtype=torch.long)
    for state, children in enumerate(mdp.next_state.tolist()):  # parents come first
        for token, child in enumerate(children):
            if child != TERMINAL:
                position[child] = position[state] + 1
                way[child] = (token + 1) // 2 if state == 0 else way[state]
    return mdp, position, way


def world(seed: int, inequality: float | None) -> tuple[TokenMDP, Tensor, TiedStates]:
    """A drawn teacher and the class; without an inequality, a generic one."""
    mdp, position, way = tree()
    generator = torch.Generator().manual_seed(seed)
    rows, noise = torch.randn(2, mdp.num_states, VOCABULARY, generator=generator).double()
    rows[:, 0] -= 2.0  # the end token is seldom the first choice
    scale = 1.0 + (inequality or 0.0) * torch.tensor([0.0, -1.0, 1.0])[way]
    if inequality is None:
        way = torch.randint(1, 3, way.shape, generator=generator) * (position > 0)
    part = (VOCABULARY * position + way).unique(return_inverse=True)[1]
    scores = rows[part] + scale[:, None] * noise
    allowed = mdp.full_vocabulary
    scores[0], allowed[0, 0] = 0.0, False
    teacher = soft_policy(scores, allowed)
    return with_log_teacher(mdp, teacher), teacher, TiedStates(part, allowed)


def divergence(mdp: TokenMDP, policy: Tensor) -> float:
    """KL(pi || T) of whole responses, nats."""
    return -float(soft_return(mdp, policy)[0])


def tuned(mdp: TokenMDP, tied: TiedStates, policy: Tensor) -> Tensor:
    """The policy at the temperature where it diverges least."""
    log_policy = policy.clamp(min=1e-300).log()
    choices = [soft_policy(log_policy / temperature, tied.allowed) for temperature in TEMPERATURES]
    return min(choices, key=lambda choice: divergence(mdp, choice))


def local(mdp: TokenMDP, tied: TiedStates) -> Tensor:
    """Where reverse KL on own rows ends: each row its states' mean log T, by its own visits."""
    members = torch.nn.functional.one_hot(tied.part).T.double()
    policy = tied.policy(torch.zeros(tied.num_parts, VOCABULARY).double())
    for _ in range(DEPTH):  # a position a round: its visits depend on those before
        weight = members * occupancy(mdp, policy)
        policy = tied.policy(weight @ mdp.reward / weight.sum(1, keepdim=True).clamp(min=1e-300))
    return policy


def measure(seed: int, inequality: float | None) -> list[list[float]]:
    """Of each policy: reverse and forward KL of whole responses, share of the first way."""
    mdp, teacher, tied = world(seed, inequality)
    cloner = best_cloner(mdp, teacher, tied)
    starts = tied.starts(STARTS, torch.Generator().manual_seed(seed))
    best = best_tied_policy(mdp, tied, starts)
    found = []
    for policy in (cloner, tuned(mdp, tied, cloner), local(mdp, tied), best):
        forward = expected_sum(mdp, teacher, state_kl(teacher, policy))[0]
        found.append([divergence(mdp, policy), float(forward), float(policy[0, 1:3].sum())])
    return found


def measured(inequality: float | None) -> Tensor:
    """The drawn trees [tree, policy, quantity]; the same draws at every inequality."""
    found = torch.tensor([measure(seed, inequality) for seed in range(TREES)])
    title = "generic" if inequality is None else f"u = {inequality:g}"
    for name, means in zip(STYLES, found.mean(0).tolist(), strict=True):
        reverse, forward, first = (f"{mean:.3f}" for mean in means)
        print(f"{title:9} {name:23} reverse {reverse}  forward {forward}  first way {first}")
    return found


def curve(axes: Any, name: str, values: Tensor, generic: Tensor) -> None:
    """Means over trees [inequality, tree] with one standard error, and the generic trees apart."""
    error, style = values.std(1) / TREES**0.5, STYLES[name]
    axes.plot(INEQUALITIES, values.mean(1), label=name, mfc="white", **style)
    axes.fill_between(
        INEQUALITIES, values.mean(1) - error, values.mean(1) + error, alpha=0.15, lw=0,
        color=style["color"],
    )  # fmt: skip
    axes.errorbar(
        [-0.2], [generic.mean()], [generic.std() / TREES**0.5], capsize=3, mfc="white",
        color=style["color"], marker=style["marker"],
    )  # fmt: skip


def draw(path: Path) -> None:
    """Write the figure: what the best policy of the class gains, and what it gives up."""
    generic = measured(None)
    found = torch.stack([measured(inequality) for inequality in INEQUALITIES])
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "learnability"})
    figure, (gain, price) = plt.subplots(1, 2, figsize=(9.2, 4.2), layout="constrained")
    names = list(STYLES)
    for name in (KD, TUNED, LOCAL):
        at, best = names.index(name), names.index(BEST)
        gaps = found[:, :, at, 0] - found[:, :, best, 0]
        curve(gain, name, gaps, generic[:, at, 0] - generic[:, best, 0])
    for name in (KD, LOCAL, BEST):
        at = names.index(name)
        curve(price, name, found[:, :, at, 1], generic[:, at, 1])
    gain.set(
        title="gain of the best policy of the class over", ylabel="reverse KL of responses, nats"
    )
    price.set(title="its price in coverage", ylabel="forward KL of responses, nats")
    for axes in (gain, price):
        axes.set(xlabel="inequality u of the two ways", ylim=(0.0, None))
        axes.set_xticks([-0.2, *INEQUALITIES], ["generic", *(f"{u:g}" for u in INEQUALITIES)])
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Date": None}, dpi=110)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    draw(folder / "learnability.svg")
