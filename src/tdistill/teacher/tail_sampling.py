"""Sampled tail tokens: what stands for the teacher's mass off the set, without bias.

The draws are the teacher's, not the response's: they are made once, when evidence is captured, and
stored with it. Their random numbers are given by the caller, so that captures are repeatable.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.core import TopPSets, offsets_of
from tdistill.evidence.tail import Tail

_CHUNK = 64


def sample_tail(
    log_probs: Float[Tensor, "T V"], sets: TopPSets, uniform: Float[Tensor, "T N"]
) -> Tail:
    """N draws a step from ``pi*(a|s) / (1 - m)`` off the set, by inverting its sums.

    A step depends on its own numbers only, never on the other steps.

    Args:
        log_probs: the teacher's full distribution, nats.
        sets: the sets to stay out of.
        uniform: N numbers in [0, 1) for each step.

    Returns:
        The distinct tokens drawn, with counts.

    Example:
        >>> log_probs = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> inside = TopPSets(torch.tensor([0]), torch.tensor([0.5]).log(), torch.tensor([0, 1]))
        >>> tail = sample_tail(log_probs, inside, torch.tensor([[0.1, 0.9, 0.4]]))
        >>> tail.ids.tolist(), tail.counts.tolist()
        ([1, 2], [2, 1])
    """
    vocabulary = log_probs.shape[1]
    inside = torch.zeros_like(log_probs, dtype=torch.bool)
    inside[sets.step, sets.ids] = True
    places = []
    for start in range(0, len(log_probs), _CHUNK):  # float64 sums of a few steps at a time
        part = slice(start, start + _CHUNK)
        mass = log_probs[part].double().exp().masked_fill(inside[part], 0.0).cumsum(-1)
        total = mass[:, -1:]
        below = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total
        target = torch.minimum(uniform[part].double() * total, below).contiguous()
        # right: the first sum above the target, so that a token without mass is never drawn.
        token = torch.searchsorted(mass, target, right=True)
        step = torch.arange(len(mass), device=token.device)[:, None] + start
        places.append((step * vocabulary + token)[(total > 0).expand_as(token)])
    flat, counts = torch.cat(places).unique(return_counts=True)
    step, ids = flat // vocabulary, flat % vocabulary
    offsets = offsets_of(step.bincount(minlength=len(log_probs)))
    return Tail(ids, log_probs[step, ids], counts, offsets)
