"""A model some of whose decoder layers are passed over, and where its layers are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Layout
from tdistill.models.score_forms import StepScores
from tdistill.models.scores import step_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Bypass:
    """A model whose decoder layers can be passed over while this context lasts.

    Args:
        lm: the model; it runs in full once before any layer is passed over.

    Attributes:
        kept: numbers of the layers that run; the others hand on what they read.
        states: what each layer read, and what it made of it, when it ran last.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, (_, self.layers) = lm, layer_stack(lm.model)
        self.kept = list(range(len(self.layers)))
        self.states: dict[int, tuple[Tensor, Tensor]] = {}
        self._beside: dict[int, tuple[Any, ...] | None] = {}  # what a layer returns with its state
        self._known: tuple[int, Tensor | None] = (-1, None)

    def __enter__(self) -> Bypass:
        """Take over the layers."""
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._forward, number, layer.forward)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for layer in self.layers:
            del layer.forward

    def scores(self, layout: Layout) -> StepScores:
        """Scores of what is left of the model; fills `states`."""
        self._known = -1, None
        size = self.lm.vocabulary_size
        return step_scores(self.lm.model, layout, vocabulary_size=size)

    def scores_without(self, number: int, layout: Layout, read: Tensor) -> StepScores:
        """Scores with one more layer passed over, computed from there.

        Args:
            number: of the layer.
            layout: tokens and steps.
            read: what the layer reads there, from `states`.
        """
        self._known = number, read
        size = self.lm.vocabulary_size
        return step_scores(self.lm.model, layout, vocabulary_size=size)

    def _forward(
        self, number: int, own: Any, hidden_states: Tensor, *rest: Any, **named: Any
    ) -> Any:
        last, known = self._known
        if number > last and number in self.kept:
            output = own(hidden_states, *rest, **named)
            together = isinstance(output, tuple)
            self.states[number] = hidden_states, output[0] if together else output
            self._beside[number] = output[1:] if together else None
            return output
        state = hidden_states if number > last else known
        beside = self._beside[number]
        return state if beside is None else (state, *beside)


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the modules of a model's decoder layers.

    Raises:
        ModelError: for a model without exactly one list of as many modules as it has layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    # A layer may hold as many experts as there are layers.
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise ModelError(
            f"{type(model).__name__}: expected one stack of {depth} layers, found "
            f"{', '.join(outer) or 'none'}; start from a smaller checkpoint of the same tokenizer "
            "instead"
        )
    return outer[0], lists[outer[0]]
