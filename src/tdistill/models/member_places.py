"""Where actions are among the members of their sets: known when a batch is made, on the host.

A device that is only given work would have to be waited for to find out how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tdistill.core import TensorGroup, TopPSets


@dataclass(frozen=True, eq=False)
class MemberPlaces(TensorGroup):
    """Of T actions among the M members of their sets.

    Attributes:
        action: the member that is each step's action; M + i for the i-th action that is none.
        outside: steps whose action is no member of their set, ascending.
        own: members that are the teacher's own, not inserted actions, ascending.
    """

    action: Int[Tensor, " T"]
    outside: Int[Tensor, " O"]
    own: Int[Tensor, " L"]


def member_places(
    sets: TopPSets, action: Int[Tensor, " T"], inserted: Bool[Tensor, " M"] | None = None
) -> MemberPlaces:
    """Where the actions are; two looks at the numbers of a device, if they are on one.

    Args:
        sets: of the steps.
        action: of each step.
        inserted: members that are not the teacher's own; none where None.

    Example:
        >>> sets = TopPSets(torch.tensor([4, 7, 7]), torch.zeros(3), torch.tensor([0, 2, 3]))
        >>> found = member_places(sets, torch.tensor([7, 5]))
        >>> found.action.tolist(), found.outside.tolist(), found.own.tolist()
        ([1, 3], [1], [0, 1, 2])
    """
    members = torch.arange(len(sets.ids), device=action.device)
    hit = sets.ids == action[sets.step]
    step = torch.where(hit, sets.step, len(action))  # one place more, for members that are none
    found = action.new_full((len(action) + 1,), -1).scatter(0, step, members)[:-1]
    outside = (found < 0).nonzero().squeeze(1)
    rank = len(members) + (found < 0).cumsum(0) - 1
    own = members if inserted is None else (~inserted).nonzero().squeeze(1)
    return MemberPlaces(torch.where(found < 0, rank, found), outside, own)
