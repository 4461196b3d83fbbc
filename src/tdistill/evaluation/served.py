"""A teacher whose weights are elsewhere: it judges by its lists, and is judged by its answers.

What a list of likeliest tokens cannot give is left out, by name and with the reason, and never
stood in for under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.listing.teacher import ListingTeacher, asked_for

_LIST = "needs the teacher's whole distribution at every step, and a served teacher lists a part"
ABSENT = {
    "forward_kl": f"{_LIST}; kl_with_rest is exact, and at most as large",
    "own_forward_kl": f"{_LIST}; own_kl_with_rest is exact, and at most as large",
    "reverse_kl": f"{_LIST}; drawn_reverse_kl estimates it without bias",
    "sequence_reverse_kl": f"{_LIST}; drawn_sequence_reverse_kl estimates it without bias",
    "exposure_bias": "a ratio of forward KLs, which are absent",
    "entropy": f"of the teacher's own responses alone: {_LIST}",
}
"""Measures that a served teacher cannot be asked for, and why."""

TASKS_ABSENT = "of the teacher alone: lm-evaluation-harness needs its weights in this process"
"""Why a served teacher has no scores in tasks."""


@dataclass(frozen=True, eq=False)
class ServedTeacher:
    """A teacher that is asked through an engine.

    Attributes:
        face: the teacher without its weights: tokenizer, configuration, shapes.
        listing: who asks for it.
        set_top_p: mass of the sets that models are held against.
    """

    face: LanguageModel
    listing: ListingTeacher
    set_top_p: float

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.face.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Tokens that it shares with its students, which have its tokenizer."""
        return self.face.vocabulary_size

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return self.face.num_parameters

    def evidence(self, rows: Sequence[Row]) -> Evidence:
        """What a cache would hold of responses, whoever made them, cut to the sets.

        Raises:
            ModelError: the engine does not answer, or wrongly.
        """
        return self.listing.evidence(rows, set_top_p=self.set_top_p)

    def respond(
        self,
        asked: Sequence[tuple[tuple[int, ...], str]],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        on_finished: Callable[[int], None],
    ) -> list[Response]:
        """Its responses.

        Args:
            asked: a prompt and a name for each; the random numbers follow from the name.
            decoding: how they are made.
            max_new_tokens: length limit.
            on_finished: told how many more have come.
        """
        answers = self.listing.respond(
            [asked_for(prompt, "evaluate", name) for prompt, name in asked],
            decoding,
            max_new_tokens=max_new_tokens,
            on_answer=lambda: on_finished(1),
        )
        return [Response(answer.ids, answer.ended) for answer in answers]


AnyModel = LanguageModel | ServedTeacher
"""A model that can be judged, or judged by."""


def served_teacher(
    face: LanguageModel, listing: ListingTeacher, *, set_top_p: float
) -> ServedTeacher:
    """The teacher as it judges: sets that its list does not complete are asked for once more.

    At the states of a student the teacher is less sure than at its own, so that lists which
    completed every set of the rollouts may not do so here; at the end of a run nothing is refused
    for that.

    Args:
        face: the teacher without its weights.
        listing: who asks for it.
        set_top_p: mass of the sets that models are held against.
    """
    if listing.incomplete == "refuse":
        listing = replace(listing, incomplete="score")
    return ServedTeacher(face, listing, set_top_p)
