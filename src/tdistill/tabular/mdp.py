"""Small token MDPs: states, tokens and deterministic transitions, as appending a token is.

Letters: S state, V vocabulary (actions). A policy is a tensor of probabilities with one row a
state; a family of action sets is a boolean mask of the same shape with at least one action a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tdistill.errors import InvalidValueError

Table = Float64[Tensor, "S V"]
Values = Float64[Tensor, " S"]
Sets = Bool[Tensor, "S V"]

TERMINAL = -1


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A finite MDP with deterministic transitions.

    Attributes:
        next_state: successor of every state and token, ``TERMINAL`` (-1) where the episode ends.
        reward: reward in nats, float64.
        discount: gamma in [0, 1), applied at every transition that does not end the episode; or 1
            where every successor has a higher number than its state, as in a tree, so that every
            episode ends.

    Raises:
        InvalidValueError: for tensors of another shape or type, a successor that is no state, a
            reward that is not finite, or a discount outside its range.

    Example:
        >>> TokenMDP(torch.tensor([[0, -1]]), torch.zeros(1, 2).double(), 0.9).num_states
        1
    """

    next_state: Int64[Tensor, "S V"]
    reward: Table
    discount: float

    def __post_init__(self) -> None:
        """Refuse tables that do not describe an MDP."""
        shape = list(self.next_state.shape)
        if len(shape) != 2 or 0 in shape or list(self.reward.shape) != shape:
            raise InvalidValueError(
                "next_state, reward: expected one shape [S, V] with S, V > 0, "
                f"found {shape} and {list(self.reward.shape)}"
            )
        if self.next_state.dtype != torch.int64 or self.reward.dtype != torch.float64:
            raise InvalidValueError(
                "next_state, reward: expected int64 and float64, "
                f"found {self.next_state.dtype} and {self.reward.dtype}"
            )
        low, high = int(self.next_state.min()), int(self.next_state.max())
        if low < TERMINAL or high >= shape[0]:
            raise InvalidValueError(
                f"next_state: expected -1 or a state below {shape[0]}, found values {low} to {high}"
            )
        if not self.reward.isfinite().all():
            raise InvalidValueError("reward: expected finite numbers, found NaN or infinity")
        if not (0.0 <= self.discount < 1.0 or (self.discount == 1.0 and self._ends())):
            raise InvalidValueError(
                "discount: expected gamma in [0, 1), or 1 where every successor has a higher "
                f"number than its state, found {self.discount}"
            )

    @property
    def num_states(self) -> int:
        """Number of states that are not terminal."""
        return self.next_state.shape[0]

    @property
    def step_discount(self) -> Table:
        """gamma of every transition, 0 where it ends the episode."""
        return self.discount * (self.next_state != TERMINAL).to(self.reward)

    @property
    def horizon(self) -> float:
        """The largest sum of gamma^t over the states of an episode: 1 / (1 - gamma), or S."""
        return self.num_states if self.discount == 1.0 else 1.0 / (1.0 - self.discount)

    @property
    def full_vocabulary(self) -> Sets:
        """The action sets that leave nothing out."""
        return torch.ones_like(self.next_state, dtype=torch.bool)

    def _ends(self) -> bool:
        here = torch.arange(self.num_states)[:, None]
        return bool(((self.next_state == TERMINAL) | (self.next_state > here)).all())


def prefix_tree(
    vocabulary_size: int,
    depth: int,
    *,
    discount: float,
    reward_scale: float,
    generator: torch.Generator,
    end_token: int = 0,
) -> TokenMDP:
    """All responses of up to ``depth`` tokens: a state is a token prefix, an action the next token.

    The end token and every token of the last step end the episode. States are numbered breadth
    first, the empty prefix is state 0.

    Args:
        vocabulary_size: number of tokens, the end token included; at least 2.
        depth: longest response in tokens, at least 1.
        discount: gamma in [0, 1].
        reward_scale: standard deviation of the normal rewards, in nats.
        generator: source of the rewards.
        end_token: id of the token that ends a response.

    Returns:
        The MDP.

    Raises:
        InvalidValueError: for sizes out of range or an end token outside the vocabulary.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> tree = prefix_tree(3, 2, discount=0.9, reward_scale=1.0, generator=seed)
        >>> tree.next_state.tolist()
        [[-1, 1, 2], [-1, -1, -1], [-1, -1, -1]]
    """
    if vocabulary_size < 2 or depth < 1 or not 0 <= end_token < vocabulary_size:
        raise InvalidValueError(
            "expected vocabulary_size >= 2, depth >= 1 and end_token below vocabulary_size, "
            f"found {vocabulary_size}, {depth} and {end_token}"
        )
    branches = vocabulary_size - 1
    num_states = sum(branches**level for level in range(depth))
    # Breadth-first numbers of a complete tree: the children of s start at branches * s + 1.
    children = torch.arange(1, num_states * branches + 1).view(num_states, branches)
    children = children.where(children < num_states, TERMINAL)
    end = torch.full((num_states, 1), TERMINAL)
    next_state = torch.cat([children[:, :end_token], end, children[:, end_token:]], dim=1)
    return TokenMDP(next_state, _normal(next_state, reward_scale, generator), discount)


def random_mdp(
    num_states: int,
    vocabulary_size: int,
    *,
    discount: float,
    reward_scale: float,
    end_share: float,
    generator: torch.Generator,
) -> TokenMDP:
    """Successors drawn uniformly over the states, so cycles occur and horizons can be long.

    Args:
        num_states: number of states.
        vocabulary_size: number of tokens.
        discount: gamma in [0, 1).
        reward_scale: standard deviation of the normal rewards, in nats.
        end_share: probability that a transition ends the episode, in [0, 1].
        generator: source of successors and rewards.

    Returns:
        The MDP.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> mdp = random_mdp(4, 3, discount=0.9, reward_scale=1.0, end_share=1.0, generator=seed)
        >>> bool((mdp.next_state == TERMINAL).all())
        True
    """
    shape = (num_states, vocabulary_size)
    next_state = torch.randint(num_states, shape, generator=generator)
    ends = torch.rand(shape, generator=generator) < end_share
    next_state = next_state.masked_fill(ends, TERMINAL)
    return TokenMDP(next_state, _normal(next_state, reward_scale, generator), discount)


def _normal(like: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.randn(like.shape, generator=generator, dtype=torch.float64)
