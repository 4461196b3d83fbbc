"""Scores of the steps of a batch: the one place where a network's outputs are read.

The linear form reads hidden states times the needed rows of the output layer; the dense form, for
heads that are not a linear map, keeps the full logits of the steps. Both give the same numbers.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.models.head import LinearHead, dense_gradient, log_normaliser, map_logits, map_steps
from tdistill.models.head.devices import row_products
from tdistill.models.language_model import inner_model
from tdistill.models.layout import Layout, Pair, lay_out, separate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HeadMode = Literal["auto", "linear", "full"]


class StepScores(Protocol):
    """Unnormalised scores (logits, nats) of T steps over the shared vocabulary."""

    @property
    def hidden(self) -> Float[Tensor, "T D"] | None:
        """What the output layer reads, where it is known."""
        ...

    def at(self, ids: Int[Tensor, " M"], step: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Scores of chosen tokens at chosen steps."""
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

    def log_normaliser(self, *, chunk_size: int = 128) -> Float[Tensor, " T"]:
        """``log sum_V exp z``, exact, with the logits of ``chunk_size`` steps at a time."""
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

    def log_normaliser(self, *, chunk_size: int = 128) -> Tensor:
        """The same by chunks, with its gradient in closed form."""
        return log_normaliser(self.head, self.hidden, chunk_size=chunk_size)

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

    def log_normaliser(self, *, chunk_size: int = 128) -> Tensor:
        """From the logits."""
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


def linear_head(model: nn.Module, vocabulary_size: int) -> LinearHead | None:
    """The model's output layer as a :class:`LinearHead`, or None if it is not known to be one.

    Made where gradients are off, it never gives any: not to a teacher that is read later, either.
    """
    lm = inner_model(model)
    head = lm.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    config = lm.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    weight, bias = head.weight, head.bias
    # A sparse gradient needs a dense one to join: that of the input embedding, if the two are one
    # parameter. A view (a flattened or sharded parameter) passes on dense gradients only.
    joined = weight is getattr(lm.get_input_embeddings(), "weight", None) and weight.is_leaf
    if not torch.is_grad_enabled():
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    elif not joined:
        weight = dense_gradient(weight)
    return LinearHead(weight, bias, scale, softcap, vocabulary_size, sparse_gradient=True)


def step_scores(
    model: nn.Module, layout: Layout, *, vocabulary_size: int, head: HeadMode = "auto"
) -> StepScores:
    """One forward pass, read at the steps of a layout.

    Under DDP or FSDP call this inside the wrapped module's forward.

    Args:
        model: the causal language model.
        layout: tokens and steps, on the model's device; a network that cannot read several
            sequences in a row gets separate rows (see :func:`shares_prompts`).
        vocabulary_size: outputs are cut to it.
        head: ``auto`` reads linear heads at chosen rows and others through full logits.

    Returns:
        The scores of the T steps.

    Raises:
        ModelError: for ``head="linear"`` on a head that is not known to be linear.
    """
    lm = inner_model(model)
    linear = None if head == "full" else linear_head(lm, vocabulary_size)
    if head == "linear" and linear is None:
        raise _not_linear(lm)
    network = lm if linear is None else lm.base_model
    if layout.sharing is not None and not shares_prompts(lm):
        layout = separate(layout)
    row, position = layout.row, layout.position
    inputs = forward_inputs(network, layout) | {"use_cache": False}
    if linear is None:
        logits, hidden = _with_hidden(lm, inputs)
        hidden = None if hidden is None else hidden[row, position]
        return DenseStepScores(logits[row, position, :vocabulary_size].float(), hidden)
    outputs = network(**inputs)
    return LinearStepScores(linear, outputs.last_hidden_state[row, position])


def _with_hidden(lm: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Logits of a forward pass, and what the output layer read for them, if there is one."""
    head, read = lm.get_output_embeddings(), []
    if head is None:
        return lm(**inputs).logits, None
    hook = head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        return lm(**inputs).logits, read[-1] if read else None
    finally:
        hook.remove()


def forward_inputs(network: Any, layout: Layout) -> dict[str, Any]:
    """Arguments of a forward pass whose positions count tokens, not padding."""
    mask, sharing = layout.attention_mask, layout.sharing
    inputs: dict[str, Any] = {"input_ids": layout.input_ids, "attention_mask": mask}
    if sharing is not None:
        inputs["attention_mask"] = sharing.masks(network.config, network.dtype)
        inputs["position_ids"] = sharing.position_ids
    elif _takes_positions(network):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs


def shares_prompts(model: nn.Module) -> bool:
    """Whether the network gives the same scores when responses share their prompt's tokens.

    Tried once on a tiny example; a network that does not is named in a warning. Under FSDP call
    this before the network is wrapped.
    """
    lm = inner_model(model)
    if lm not in _SHARES:
        problem = _sharing_problem(lm)
        if problem is not None:
            warnings.warn(
                f"{type(lm).__name__}: the responses of a prompt cannot share its tokens "
                f"({problem}); they get separate rows, which costs time",
                stacklevel=2,
            )
        _SHARES[lm] = problem is None
    return _SHARES[lm]


_SHARES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _sharing_problem(lm: PreTrainedModel) -> str | None:
    """What is wrong with shared prompts, or None."""
    if not _takes_positions(lm):
        return "its forward takes no position_ids"
    most = min(8, lm.config.get_text_config().vocab_size)
    tokens = [tuple(i % most for i in range(n, n + 4)) for n in range(6)]
    rows = [Pair(tokens[i % 2], tokens[i]) for i in range(6)]
    shared = lay_out(rows, 0).to(lm.device)
    was_training = lm.training
    lm.eval()
    try:
        with torch.autocast(lm.device.type, enabled=False):
            found, expected = (
                lm(**forward_inputs(lm, laid), use_cache=False).logits[laid.row, laid.position]
                for laid in (shared, separate(shared))
            )
    except (ModelError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        return str(error)
    finally:
        lm.train(was_training)
    if not expected.isfinite().all():
        return None  # damaged weights: whoever reads them says so
    worst = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    allowed = 1e-3 if expected.dtype == torch.float32 else 0.05
    return None if worst <= allowed else f"scores differ by {worst:.2g} of the largest logit"


def _takes_positions(network: nn.Module) -> bool:
    return "position_ids" in inspect.signature(network.forward).parameters


@torch.no_grad()
def check_head(
    model: nn.Module, *, vocabulary_size: int, head: HeadMode = "auto", tolerance: float = 1e-3
) -> None:
    """Compare scores read at chosen rows with the model's own logits, before any training.

    Raises:
        ModelError: if they differ by more than ``tolerance`` relative to the largest logit, or for
            ``head="linear"`` on a head that is not known to be linear.
    """
    lm = inner_model(model)
    if head == "full":
        return
    if linear_head(lm, vocabulary_size) is None:
        if head == "linear":
            raise _not_linear(lm)
        warnings.warn(
            f"{type(lm).__name__}: the output layer is "
            f"{type(lm.get_output_embeddings()).__name__}, not a plain linear map; scores come "
            "from full logits, which costs memory and time",
            stacklevel=2,
        )
        return
    was_training = lm.training
    lm.eval()
    ids = torch.arange(min(8, vocabulary_size), device=lm.device)[None]
    steps = torch.arange(ids.shape[1], device=lm.device)
    layout = Layout(ids, torch.ones_like(ids), torch.zeros_like(steps), steps)
    own = step_scores(lm, layout, vocabulary_size=vocabulary_size, head="full")
    ours = step_scores(lm, layout, vocabulary_size=vocabulary_size, head="linear")
    lm.train(was_training)
    assert isinstance(own, DenseStepScores)
    expected = own.logits
    found = ours.rows(0, len(steps))
    worst = (found.float() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    if not worst <= tolerance:
        raise ModelError(
            f"{type(lm).__name__}: scores read from the output layer differ from the model's own "
            f"logits by {float(worst):.2g} of the largest logit (allowed {tolerance}); the head is "
            "not the linear map it looks like: set training.head to full"
        )


def _not_linear(lm: PreTrainedModel) -> ModelError:
    return ModelError(
        f"{type(lm).__name__}: expected a plain linear output layer, found "
        f"{type(lm.get_output_embeddings()).__name__}; set training.head to auto or full"
    )
