"""The scores of T steps: read from hidden states, or kept as full logits. Both give the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from tdistill.models.head import LinearHead, log_normaliser, map_logits, map_steps
from tdistill.models.head.devices import row_products


class StepScores(Protocol):
    """Unnormalised scores (logits, nats) of T steps over the shared vocabulary."""

    @property
    def hidden(self) -> Float[Tensor, "T D"] | None:
        """What the output layer reads, where it is known."""
        ...

    def at(self, ids: Int[Tensor, " M"], step: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Scores of chosen tokens at chosen steps, which ascend."""
        ...

    def columns(self, ids: Int[Tensor, " N"]) -> Float[Tensor, "T N"]:
        """Scores of the same tokens at every step."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that have a score."""
        ...

    def reduce(self, function: Any, *per_step: Tensor, chunk_size: int) -> Float[Tensor, "T ..."]:
        """``function(logits [c, V], *chunks)`` over chunks of steps, recomputed when needed.

        Only the logits get a gradient; the per-step tensors are constants.
        """
        ...

    def log_normaliser(self, *, chunk_size: int = 128, kept_mib: int = 0) -> Float[Tensor, " T"]:
        """``log sum_V exp z``, exact, with the logits of ``chunk_size`` steps at a time.

        Of logits that take no more than ``kept_mib`` none are computed again for the gradient.
        """
        ...

    def select(self, steps: Int[Tensor, " S"]) -> StepScores:
        """The scores of some of the steps."""
        ...

    def rows(self, start: int, stop: int) -> Float[Tensor, "c V"]:
        """Full logits of the steps from ``start`` to ``stop``."""
        ...

    def __len__(self) -> int:
        """Number of steps."""
        ...


@dataclass(frozen=True, eq=False)
class LinearStepScores:
    """Scores from hidden states; no tensor over steps and vocabulary exists."""

    head: LinearHead
    hidden: Float[Tensor, "T D"]

    def at(self, ids: Tensor, step: Tensor) -> Tensor:
        """Scores of chosen tokens: hidden states times their rows."""
        products = row_products(self.hidden.device)
        return self.head.scores(self.hidden, ids, step, products=products)

    def columns(self, ids: Tensor) -> Tensor:
        """One product with the rows of the tokens."""
        return self.head.columns(self.hidden, ids)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output layer that are tokens."""
        return self.head.size

    def reduce(self, function: Any, *per_step: Tensor, chunk_size: int) -> Tensor:
        """Chunks of full logits, never all at once."""
        return map_logits(self.head, self.hidden, function, *per_step, chunk_size=chunk_size)

    def log_normaliser(self, *, chunk_size: int = 128, kept_mib: int = 0) -> Tensor:
        """The same by chunks, with its gradient in closed form."""
        return log_normaliser(self.head, self.hidden, chunk_size=chunk_size, kept_mib=kept_mib)

    def select(self, steps: Tensor) -> LinearStepScores:
        """Those hidden states."""
        return LinearStepScores(self.head, self.hidden[steps])

    def rows(self, start: int, stop: int) -> Tensor:
        """Full logits of a few steps."""
        return self.head.logits(self.hidden[start:stop])

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.hidden)


@dataclass(frozen=True, eq=False)
class DenseStepScores:
    """Scores from the model's own logits."""

    logits: Float[Tensor, "T V"]
    hidden: Float[Tensor, "T D"] | None = None

    def at(self, ids: Tensor, step: Tensor) -> Tensor:
        """Scores of chosen tokens."""
        return self.logits[step, ids]

    def columns(self, ids: Tensor) -> Tensor:
        """Columns of the logits."""
        return self.logits[:, ids]

    @property
    def vocabulary_size(self) -> int:
        """Columns of the logits."""
        return self.logits.shape[1]

    def reduce(self, function: Any, *per_step: Tensor, chunk_size: int) -> Tensor:
        """Chunks of the logits."""
        return map_steps(function, self.logits, *per_step, chunk_size=chunk_size)

    def log_normaliser(self, *, chunk_size: int = 128, kept_mib: int = 0) -> Tensor:
        """From the logits, which are kept anyway."""
        return self.reduce(lambda z: z.logsumexp(-1), chunk_size=chunk_size)

    def select(self, steps: Tensor) -> DenseStepScores:
        """Those logits."""
        hidden = None if self.hidden is None else self.hidden[steps]
        return DenseStepScores(self.logits[steps], hidden)

    def rows(self, start: int, stop: int) -> Tensor:
        """Full logits of a few steps."""
        return self.logits[start:stop]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.logits)
