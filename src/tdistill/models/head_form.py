"""What a network does after its output layer's linear map, found by trying: a scale, a soft cap."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdistill.errors import ModelError, one_line
from tdistill.models.finite import has_numbers, refuse_step
from tdistill.models.head import LinearHead
from tdistill.models.probes import (
    FAILURES,
    disagreement,
    on_trial,
    probe_tokens,
    remembered,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBED = 8  # tokens
_LARGE = 40.0  # nats
_NAMES = re.compile("scal|multiplier|cap|mup")  # of fields that may act on logits


class HeadForm(NamedTuple):
    """``z = cap(scale (W h + b))`` with the weights of the output layer."""

    scale: float = 1.0
    softcap: float | None = None

    def of(self, linear: Tensor) -> Tensor:
        """Logits from what the linear map gives."""
        z = linear.float() * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def body_of(lm: PreTrainedModel) -> Any:
    """The network below the output layer, whose last hidden states the layer reads."""
    body = lm.base_model
    return getattr(lm, "model", lm) if body is lm else body


def narrowed(hidden: Tensor, weight: Tensor) -> Tensor:
    """Hidden states in the dtype of an output layer that is narrower, as networks hand them on."""
    return hidden.to(weight.dtype) if weight.dtype.itemsize < hidden.dtype.itemsize else hidden


@remembered
def head_form(lm: Any) -> HeadForm | None:
    """What follows the output layer, or None where no linear form gives the model's own logits.

    Tried once on a few tokens against the logits of the model's forward pass; a model that has no
    such form is named in a warning. Under FSDP call this before the network is wrapped.

    Raises:
        ModelError: the model cannot read a row of tokens.
        NonFiniteError: its own logits are no numbers.
    """
    form, problem = _find(lm)
    if form is None:
        warnings.warn(
            f"{type(lm).__name__}: {problem}; scores come from full logits, which costs memory and "
            "time",
            stacklevel=4,
        )
    return form


def _find(lm: Any) -> tuple[HeadForm | None, str]:
    head = lm.get_output_embeddings()
    kind = type(head).__name__
    if type(head) is not nn.Linear:
        return None, f"the output layer is {kind}, not a plain linear map"
    tokens = probe_tokens(lm, _PROBED)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([tokens], device=lm.device),
        "use_cache": False,
    }
    own = own_logits(lm, tokens)
    with on_trial(lm):
        try:
            hidden = narrowed(body_of(lm)(**inputs).last_hidden_state[0], head.weight)
            linear: Tensor = LinearHead(head.weight, head.bias).logits(hidden)
        except FAILURES as error:
            return None, f"hidden states are not what the output layer reads ({one_line(error)})"
        if linear.shape != own.shape:
            return None, f"logits are of {own.shape[1]} tokens, not of {linear.shape[1]}"
        # Logits as large as training may make them: a cap cannot be seen on small ones.
        numbers = linear[linear.isfinite()]
        factor = _LARGE / float(numbers.abs().max().clamp(min=1e-6))

        def amplify(module: nn.Module, given: Any, made: Any) -> Any:
            return made * factor

        hook = head.register_forward_hook(amplify)
        try:
            amplified = lm(**inputs).logits[0]
        finally:
            hook.remove()
    forms = list(_candidates(lm.config.get_text_config()))
    for form in forms:
        pairs = ((linear, own), (linear * factor, amplified))
        if all(_gives(form, plain, theirs, lm.dtype) for plain, theirs in pairs):
            return form, ""
    nearest = min(float((form.of(linear) - own).nan_to_num().abs().max()) for form in forms)
    return None, (
        "scores read from the output layer differ from the model's own logits "
        f"(by {nearest:.2g} nats), with every scale and cap that its config names"
    )


def own_logits(lm: Any, tokens: Sequence[int]) -> Float[Tensor, "T V"]:
    """The logits of the model's forward pass over one row, in evaluation mode, as it gives them.

    Raises:
        ModelError: the forward pass fails.
        NonFiniteError: they are no numbers.
    """
    with on_trial(lm):
        try:
            ids = torch.tensor([list(tokens)], device=lm.device)
            logits = lm(input_ids=ids, use_cache=False).logits[0]
        except FAILURES as error:
            raise ModelError(
                f"{type(lm).__name__}: expected a causal language model that reads a row of tokens;"
                f" its forward pass failed with: {one_line(error)}"
            ) from error
        bad = (~has_numbers(logits)).nonzero()
        if len(bad):
            refuse_step(lm, [tokens], 0, int(bad[0]))
        return logits


def _gives(form: HeadForm, linear: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    return disagreement(form.of(linear), own, dtype, same_pass=True) is None


def _candidates(config: Any) -> Iterator[HeadForm]:
    """Every scale with every cap that the config's numbers could mean, none first.

    Names and meanings differ: Cohere multiplies by ``logit_scale``, MPT has the field and ignores
    it; Granite divides by ``logits_scaling``, others multiply.
    """
    numbers = {
        float(value)
        for name, value in vars(config).items()
        if _NAMES.search(name) and isinstance(value, int | float) and value and value > 0
    }
    numbers |= {float(v) for v in (_width_ratio(config),) if v}
    scales = [1.0, *sorted(numbers - {1.0}), *sorted(1.0 / n for n in numbers - {1.0})]
    for softcap in (None, *sorted(numbers)):
        for scale in scales:
            yield HeadForm(scale, softcap)


def _width_ratio(config: Any) -> float | None:
    """The divisor of MiniCPM's hidden states."""
    base = getattr(config, "dim_model_base", None)
    return config.hidden_size / base if base else None
