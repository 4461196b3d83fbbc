"""Log-probabilities of whole responses under a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Tokens, alike, lay_out
from tdistill.models.scores import step_scores


@torch.no_grad()
def response_log_probs(
    lm: LanguageModel, rows: Sequence[Tokens], *, vocabulary_size: int, batch_size: int
) -> Float[Tensor, " N"]:
    """``log pi(response | prompt)`` of each row, nats; float64, on the CPU.

    Args:
        lm: the model; dropout is as its mode has it.
        rows: prompts with responses.
        vocabulary_size: tokens that its probabilities are over.
        batch_size: rows of one forward pass.
    """
    order = alike(rows)
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for first in range(0, len(rows), batch_size):
        group = order[first : first + batch_size]
        laid = lay_out([rows[i] for i in group], lm.pad_id).to(lm.device)
        scores = step_scores(lm.model, laid, vocabulary_size=vocabulary_size)
        actions = torch.tensor([a for i in group for a in rows[i].response_ids])
        actions = actions.to(lm.device)
        normaliser = scores.log_normaliser(chunk_size=256)
        chosen = scores.at(actions, torch.arange(len(actions), device=lm.device))
        lengths = [len(rows[i].response_ids) for i in group]
        parts = (chosen - normaliser).double().split(lengths)
        totals[group] = torch.stack([part.sum() for part in parts]).cpu()
    return totals
