"""Which causal language model a configuration stands for: the text part of a multimodal one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tdistill.errors import ModelError, excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_OTHER_TASKS = re.compile(
    "For(MaskedLM|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)$"
)

TEXT_KEYS = {
    r"^(?:model\.)?(?:language_model|text_model)\.model\.": "model.",
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.": "model.",
}
"""Names of a multimodal model's text weights, older and newer, as those of the text model."""


def architecture_of(config: PreTrainedConfig) -> str:
    """The class that a checkpoint names, or that of its configuration; as it can stand in a line.

    Example:
        >>> from transformers import LlamaConfig
        >>> architecture_of(LlamaConfig(architectures=["LlamaForCausalLM"]))
        'LlamaForCausalLM'
        >>> architecture_of(LlamaConfig())
        'LlamaConfig'
    """
    named: Any = config.architectures
    return excerpt(named[0] if isinstance(named, list) and named else type(config).__name__)


def note_untied(model: Any) -> None:
    """Let the configuration of a network say that its output layer has weights of its own."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def note_tying(model: Any) -> None:
    """Believe the weights: with both layers in a checkpoint, and different, they are not tied.

    transformers keeps them apart then, though config.json may say otherwise; a network made from
    that would be another.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    own = getattr(head, "weight", None)
    if own is not None and own is not embedding.weight and model.config.tie_word_embeddings:
        note_untied(model)


def causal_config(config: PreTrainedConfig, path: str) -> PreTrainedConfig:
    """The configuration of the causal language model to load.

    Args:
        config: of the checkpoint.
        path: where it is, for messages.

    Returns:
        The same, or that of its text model. Padding ids that are no tokens are left out: no
        embedding could be made with them, and nothing depends on them.

    Raises:
        ModelError: the architecture has no causal form; in one line that names it.
    """
    from transformers import AutoModelForCausalLM

    name = architecture_of(config)
    found = f"{path}: expected a causal language model (decoder only), found {name}"
    if config.is_encoder_decoder:
        raise ModelError(f"{found}, an encoder-decoder; its two parts cannot be read as one")
    if _OTHER_TASKS.search(name):
        raise ModelError(f"{found}, which was trained for another task; take one ForCausalLM")
    text: Any = config.get_text_config(decoder=True)
    if type(text) not in AutoModelForCausalLM._model_mapping:  # `keys` would import every model
        wrapper = "" if text is config else ", whose text model cannot be had alone"
        raise ModelError(f"{found}{wrapper}; transformers has no causal language model of it")
    if text is not config:  # whose head is tied to the embedding as the whole model says
        text.tie_word_embeddings = config.tie_word_embeddings
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(size, int) and not 0 <= pad < size:
        text.pad_token_id = None
    return text
