"""Which of a teacher's layers a student keeps, measured on the teacher's own responses.

``influence`` leaves out the layers that change their input least: Men et al. 2024, "ShortGPT:
Layers in Large Language Models are More Redundant Than You Expect" (arXiv:2403.03853). ``greedy``
takes one layer after the other out of what is left, each time the one whose loss costs least, as in
Song et al. 2024, "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of
Transformer Blocks" (arXiv:2402.09025). What it costs is the forward KL from the whole teacher: over
all tokens at once, so that few steps tell layers apart, where one sampled token a step is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdistill.core import forward_kl
from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Layout, Tokens, cut, evenly_chosen, pack
from tdistill.models.score_forms import StepScores
from tdistill.progress import Progress
from tdistill.training.bypass import Bypass
from tdistill.training.config import LayerRule
from tdistill.training.student import evenly_spaced, nearest_fit

_TOKENS_A_PASS = 1024  # the hidden states between all layers are kept, and the teacher's logits
_TRIED = 6  # layers tried each round: those whose removal cost least when they were last tried


@dataclass(frozen=True)
class LayerChoice:
    """The layers that a student keeps, and what they were chosen by.

    Attributes:
        choose: the rule.
        kept: numbers of the teacher's layers, ascending.
        wanted: those that the rule chose, where they could not be kept as they are.
        measured_steps: response tokens that were measured on; 0 for ``even``, as all below.
        influence: 1 - cosine of the hidden state before and after each of the teacher's layers.
        removed: ``greedy``: the layers left out, in their order.
        forward_kl: ``greedy``: from the whole teacher after each removal, nats a token.
    """

    choose: LayerRule
    kept: tuple[int, ...]
    measured_steps: int = 0
    influence: tuple[float, ...] = ()
    removed: tuple[int, ...] = ()
    forward_kl: tuple[float, ...] = ()
    wanted: tuple[int, ...] = ()

    def text(self) -> str:
        """One line for people."""
        why: str = self.choose
        if self.forward_kl:
            why += f", forward KL {self.forward_kl[-1]:.2f} nats a token before training"
        if self.wanted:
            chosen = ", ".join(map(str, self.wanted))
            why += f"; not {chosen}, whose kinds follow from their index and would change"
        return f"layers {', '.join(map(str, self.kept))} of the teacher ({why})"


@torch.no_grad()
def choose_layers(
    teacher: LanguageModel,
    keep: int,
    choose: LayerRule,
    rows: Sequence[Tokens] = (),
    *,
    measured_tokens: int = 1024,
) -> LayerChoice:
    """Choose the layers of a student.

    Args:
        teacher: the model to take layers from; as it was when this returns.
        keep: how many.
        choose: ``even``, ``first``, ``influence`` or ``greedy``.
        rows: the teacher's responses, of which some are read, evenly spread, where the rule is
            measured.
        measured_tokens: about how many tokens of them are read, prompts included.

    Returns:
        The layers of the rule, or the nearest that the architecture can have without the others.

    Raises:
        ModelError: for a number of layers that the teacher does not have, a model without one stack
            of layers, or nothing to measure on.
    """
    choice = _by_rule(teacher, keep, choose, rows, measured_tokens)
    kept = nearest_fit(teacher, choice.kept)
    return choice if kept == choice.kept else replace(choice, kept=kept, wanted=choice.kept)


def _by_rule(
    teacher: LanguageModel,
    keep: int,
    choose: LayerRule,
    rows: Sequence[Tokens],
    measured_tokens: int,
) -> LayerChoice:
    even = evenly_spaced(teacher.model.config.get_text_config().num_hidden_layers, keep)
    if choose in ("even", "first"):
        return LayerChoice(choose, even if choose == "even" else tuple(range(keep)))
    if not rows:
        raise ModelError(
            f"choose: {choose} is measured: expected responses of the teacher, found none; "
            "give some, or choose even"
        )
    rows = evenly_chosen(rows, measured_tokens)
    parts = cut(rows, _TOKENS_A_PASS, share=False)
    layouts = [pack([rows[i] for i in part], pad_id=teacher.pad_id) for part in parts]
    layouts = [layout.to(teacher.device) for layout in layouts]
    steps = sum(len(row.response_ids) for row in rows)
    with Bypass(teacher) as layers:
        influence = [total / steps for total in _summed_influence(layers, layouts)]
        if choose == "influence":
            strongest = sorted(layers.kept, key=lambda n: -influence[n])[:keep]
            return LayerChoice(choose, tuple(sorted(strongest)), steps, tuple(influence))
        found = list(_greedy(layers, layouts, keep))
        kept, removed = tuple(layers.kept), tuple(number for number, _ in found)
        losses = tuple(total / steps for _, total in found)
        return LayerChoice(choose, kept, steps, tuple(influence), removed, losses)


def _summed_influence(layers: Bypass, layouts: Sequence[Layout]) -> list[float]:
    """``sum over steps of 1 - cos(h_before, h_after)`` of each layer of the whole model."""
    sums = [0.0] * len(layers.layers)
    for layout in layouts:
        layers.scores(layout)
        for number, states in layers.states.items():
            before, after = (state[layout.row, layout.position].float() for state in states)
            sums[number] += float((1 - torch.cosine_similarity(before, after, dim=-1)).sum())
    return sums


def _greedy(layers: Bypass, layouts: Sequence[Layout], keep: int) -> Iterator[tuple[int, float]]:
    """Take layers out until ``keep`` are left; yields each, and the summed KL without it."""
    teacher = [layers.scores(layout) for layout in layouts]
    cost = dict.fromkeys(layers.kept, 0.0)  # by how much the loss rose without it, at its last try
    loss, most = 0.0, len(cost)
    bar = Progress("choose layers", most - keep, "layers")
    steps = sum(len(scores) for scores in teacher)
    while len(layers.kept) > keep:
        tried = sorted(layers.kept, key=cost.__getitem__)[:most]
        losses = _losses_without(layers, tried, layouts, teacher)
        cost |= {number: found - loss for number, found in losses.items()}
        least = min(losses, key=losses.__getitem__)
        layers.kept.remove(least)
        loss, most = losses[least], _TRIED
        bar.update(len(cost) - len(layers.kept), f"without {least}: KL {loss / steps:.2f}")
        yield least, loss
    bar.close()


def _losses_without(
    layers: Bypass, tried: Sequence[int], layouts: Sequence[Layout], teacher: Sequence[StepScores]
) -> dict[int, float]:
    """Forward KL from the teacher, summed over steps, with each of the layers passed over."""
    losses = dict.fromkeys(tried, 0.0)
    for layout, whole in zip(layouts, teacher, strict=True):
        target = whole.rows(0, len(whole)).float().log_softmax(-1)
        layers.scores(layout)
        read = {number: layers.states[number][0] for number in tried}
        for number in tried:
            scores = layers.scores_without(number, layout, read[number])
            losses[number] += float(scores.reduce(_divergence, target, chunk_size=128).sum())
    return losses


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return forward_kl(target, logits.float().log_softmax(-1))
