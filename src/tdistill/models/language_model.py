"""Causal language models with their tokenizers: loading, saving, identity, shared vocabulary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tdistill.errors import ModelError
from tdistill.files import resolve_path
from tdistill.hashing import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED_WEIGHTS = 64


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model and its tokenizer.

    Attributes:
        model: the network, in evaluation mode.
        tokenizer: its tokenizer.
        name: the folder or hub name it came from, for messages and manifests.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary_size(self) -> int:
        """Tokens that exist; output rows above it are padding of the matrix, never scored."""
        return min(len(self.tokenizer), output_rows(self.model))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: the tokenizer's end token and the generation config's."""
        declared: Any = getattr(self.model.generation_config, "eos_token_id", None)
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        own: Any = self.tokenizer.eos_token_id
        ids: set[int] = {own, *declared} - {None}
        if not ids:
            raise ModelError(
                f"{self.name}: expected an end-of-sequence token, found none in the tokenizer or "
                "generation_config.json; set tokenizer.eos_token"
            )
        return tuple(sorted(ids))

    @property
    def pad_id(self) -> int:
        """Padding id; the end token where the tokenizer has none (masks do not depend on it)."""
        pad: Any = self.tokenizer.pad_token_id
        return self.end_ids[0] if pad is None else int(pad)


def load(
    path: str | Path,
    *,
    gguf_file: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """A causal language model from a folder (or a hub name, if the user gave one).

    Remote code is never run. A GGUF file is de-quantised; convert it once with :func:`save`, since
    loading it takes ten times as long as safetensors.

    Args:
        path: a Hugging Face folder or hub name.
        gguf_file: name of a GGUF file within it.
        device: where to put the weights; None takes CUDA where there is one.
        dtype: of the weights.

    Returns:
        The model, in evaluation mode, with its tokenizer.

    Raises:
        ModelError: if there is no loadable model or tokenizer at ``path``, or weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {}
    if gguf_file is not None:
        from transformers import GgufConfig

        options = {"quantization_config": GgufConfig(dequantize=True)}
    path = resolve_path(str(path))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), gguf_file=gguf_file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path), gguf_file=gguf_file, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{path}: expected a causal language model with its tokenizer in transformers' format; "
            f"loading failed with: {error}"
        ) from error
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{path}: expected every weight of the model, found {len(missing)} missing (first: "
            f"{missing[0]}), which would be random; take a complete checkpoint of a causal model"
        )
    if gguf_file is not None:  # de-quantised: otherwise saving writes a quantised config
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return LanguageModel(model.to(target).eval(), tokenizer, str(path))


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Only the tokenizer of a model folder or hub name.

    Raises:
        ModelError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(resolve_path(str(path)))
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"{path}: expected a tokenizer in transformers' format; loading failed with: {error}"
        ) from error
    return tokenizer


def load_config(path: str | Path) -> PreTrainedConfig:
    """Only the configuration of a model folder or hub name.

    Raises:
        ModelError: if there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve_path(str(path)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: expected a model in transformers' format; loading failed with: {error}"
        ) from error


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model (safetensors) and tokenizer as a normal Hugging Face folder."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def inner_model(model: Any) -> PreTrainedModel:
    """The causal language model inside DDP and PEFT wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_rows(model: PreTrainedModel) -> int:
    """Rows of the output layer, padding of the matrix included."""
    head = inner_model(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.vocab_size)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what gives token ids their meaning: the vocabulary and the end token.

    Padding of the embedding matrix does not enter, so models of one family with different
    ``vocab_size`` (Qwen2.5: 151,936 and 152,064) agree.
    """
    return key_of(sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id)


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hash of names, shapes and a sample of the weights; the file format does not enter."""
    digest = hashlib.sha256()
    for name, weight in sorted(inner_model(model).named_parameters()):
        flat = weight.detach().flatten()
        stride = max(1, flat.numel() // _SAMPLED_WEIGHTS)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(flat[::stride].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_same_tokenizer(teacher: LanguageModel, student: LanguageModel) -> None:
    """Refuse a student whose token ids mean something else than the teacher's.

    Raises:
        ModelError: if the tokenizers differ.
    """
    if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(student.tokenizer):
        raise ModelError(
            f"tokenizers differ: teacher {teacher.name} has {len(teacher.tokenizer)} tokens, "
            f"student {student.name} has {len(student.tokenizer)}, and the ids are not the same; "
            "top-p sets are token ids, so both must share one tokenizer: take a student of the "
            "same family, or make one with `tdistill student`"
        )


def shared_vocabulary(teacher: LanguageModel, student: LanguageModel) -> int:
    """Tokens that both models can score; both are cut to it before normalising."""
    check_same_tokenizer(teacher, student)
    return min(teacher.vocabulary_size, student.vocabulary_size)
