"""Causal language models with their tokenizers: loading, saving, identity, shared vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tdistill.errors import ModelError, one_line
from tdistill.files import hub_name, resolve_path
from tdistill.hashing import key_of
from tdistill.models.adapters import adapter_base, adapter_bases, merged
from tdistill.models.architecture import TEXT_KEYS, causal_config, note_tying
from tdistill.models.model_files import check_model_folder
from tdistill.models.soundness import check_loaded, check_numbers
from tdistill.models.weights import FLOAT32, DType, WeightsConfig
from tdistill.processes import local_rank

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED_WEIGHTS = 64


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model and its tokenizer.

    Attributes:
        model: the network, in evaluation mode.
        tokenizer: its tokenizer.
        name: the folder, or ``hub:NAME``, it came from, for messages and manifests.
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

    @cached_property
    def vocabulary_size(self) -> int:
        """The largest token id and one; output rows above it are padding, never scored."""
        return min(largest_id(self.tokenizer) + 1, output_rows(self.model))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: the tokenizer's end token and the generation config's.

        The token that a chat template ends turns with is in the generation config: see
        :func:`also_end_at`.
        """
        own: Any = self.tokenizer.eos_token_id
        ids: set[int] = {own, *declared_ends(self.model)} - {None}
        if not ids:
            raise ModelError(
                f"{self.name}: expected an end-of-sequence token, found none in the tokenizer or "
                "generation_config.json; set tokenizer.eos_token"
            )
        return tuple(sorted(ids))

    @property
    def pad_id(self) -> int:
        """An id to fill rows with: the padding token where the network can read it, else another.

        Masks do not depend on it.
        """
        embedding: Any = self.model.get_input_embeddings()
        readable = range(int(embedding.weight.shape[0]))
        pad: Any = self.tokenizer.pad_token_id
        return next((i for i in (pad, *self.end_ids) if i is not None and i in readable), 0)


def load(
    path: str | Path,
    *,
    gguf_file: str | None = None,
    device: str | torch.device | None = None,
    weights: WeightsConfig = FLOAT32,
) -> LanguageModel:
    """A causal language model from a folder, or from the hub as ``hub:NAME``.

    Only safetensors are read; pickles and the code that a checkpoint may bring never are. Of a
    multimodal model the text part is loaded, and an adapter is merged into its base. A GGUF file is
    de-quantised; convert it once with :func:`save`, since loading it takes ten times as long as
    safetensors.

    Args:
        path: a Hugging Face folder, ``package:NAME`` or ``hub:NAME``.
        gguf_file: name of a GGUF file within it.
        device: where to put the weights; None takes CUDA where there is one.
        weights: their precision, and how they are spread over several devices.

    Returns:
        The model, in evaluation mode, with its tokenizer.

    Raises:
        ModelError: if there is no loadable model or tokenizer at ``path``, or weights are missing,
            left out, or no numbers.
    """
    path = resolve_path(str(path))
    adapter_bases(path)  # refuses those without an end
    base = adapter_base(path)
    if base is not None:
        lm = load(base, device="cpu", weights=_to_merge(weights))
        tokenizer = load_tokenizer(path) if _has_tokenizer(path) else lm.tokenizer
        model = merged(lm.model, Path(path)).to(_device(device)).eval()
        return LanguageModel(model, tokenizer, path)
    if hub_name(path) is None and gguf_file is None:
        check_model_folder(Path(path))
    if gguf_file is not None:
        model = _load_gguf(path, gguf_file, _dtype_of(weights, device) or torch.float32)
    else:
        whole = _load_whole_config(path)
        config = causal_config(whole, path)
        text = {} if config is whole else {"key_mapping": TEXT_KEYS}
        options = _loading_options(weights, device)
        model = _load_weights(path, config=config, **options, **text)
        if text:  # else it would be saved under the names of the whole
            vars(model).pop("_weight_conversions", None)
    tokenizer = load_tokenizer(path, gguf_file=gguf_file)
    return LanguageModel(_placed(model, device, weights).eval(), tokenizer, path)


def _placed(model: Any, device: str | torch.device | None, weights: WeightsConfig) -> Any:
    """On one device, where accelerate or a quantiser has not put it anywhere."""
    if weights.device_map is not None or getattr(model, "is_quantized", False):
        return model
    return model.to(_device(device))


def _dtype_of(weights: WeightsConfig, device: str | torch.device | None) -> torch.dtype | None:
    """The precision to load in; None: the checkpoint's own."""
    if weights.dtype != "auto":
        return getattr(torch, weights.dtype)
    return None if torch.device(_device(device)).type == "cuda" else torch.float32


def _to_merge(weights: WeightsConfig) -> WeightsConfig:
    """How the base of an adapter is loaded: whole and on one device, since it is added to."""
    return replace(weights, device_map=None, quantise=None)


def _loading_options(weights: WeightsConfig, device: str | torch.device | None) -> dict[str, Any]:
    """The arguments of transformers that a configuration stands for."""
    from transformers import BitsAndBytesConfig

    dtype = _dtype_of(weights, device)
    options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
    if weights.device_map is not None:
        options["device_map"] = weights.device_map
    if weights.attention is not None:
        options["attn_implementation"] = weights.attention
    if weights.quantise == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif weights.quantise == "4bit":
        compute = dtype or torch.bfloat16
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    return options


def _device(device: str | torch.device | None) -> str | torch.device:
    """Where weights go; of a launched process, to its own device, whatever torch was told so far.

    The launcher's environment says which, before torch or the Trainer was told of it: else every
    process of a machine would put its models on the first device.
    """
    if device is not None:
        return device
    if not torch.cuda.is_available():
        return "cpu"
    number = local_rank()
    return "cuda" if number is None else f"cuda:{number % torch.cuda.device_count()}"


def _load_gguf(path: str, gguf_file: str, dtype: torch.dtype) -> Any:
    from transformers import GgufConfig

    config = GgufConfig(dequantize=True)
    model = _load_weights(path, gguf_file=gguf_file, dtype=dtype, quantization_config=config)
    model.hf_quantizer = None  # de-quantised: otherwise saving writes a quantised config
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _load_weights(path: str, **options: Any) -> Any:
    """The network, whose weights are those of the checkpoint, and numbers."""
    from transformers import AutoModelForCausalLM

    def read() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            hub_name(path) or path,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )

    model, loading = _loaded(path, "a causal language model in transformers' format", read)
    check_loaded(model, loading, path)
    check_numbers(model, path)
    note_tying(model)
    return model


def _has_tokenizer(path: str) -> bool:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return any((Path(path) / name).exists() for name in names)


def load_tokenizer(path: str | Path, *, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """Only the tokenizer of a model; of an adapter without one, that of its base.

    Args:
        path: as for :func:`load`.
        gguf_file: name of a GGUF file within it.

    Raises:
        ModelError: if there is none.
    """
    from transformers import AutoTokenizer

    place = resolve_path(str(path))
    # Of an adapter its own, else that of the nearest base that has one.
    line = [place, *adapter_bases(place)]
    place = next((x for x in line if hub_name(x) is not None or _has_tokenizer(x)), line[-1])

    def read() -> Any:
        source = hub_name(place) or place
        return AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, trust_remote_code=False)

    return _loaded(place, "a tokenizer in transformers' format", read)


def load_config(path: str | Path, *, gguf_file: str | None = None) -> PreTrainedConfig:
    """Only the configuration of the causal language model at a path; of an adapter, of its base.

    Args:
        path: as for :func:`load`.
        gguf_file: name of a GGUF file within it, of which only the metadata is read.

    Raises:
        ModelError: if there is none.
    """
    place = resolve_path(str(path))
    place = (adapter_bases(place) or [place])[-1]
    return causal_config(_load_whole_config(place, gguf_file), place)


def parameters_of(config: PreTrainedConfig) -> int:
    """Parameters of the causal language model of a configuration; no weight is read or made."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(weight.numel() for weight in model.parameters())


def _load_whole_config(path: str, gguf_file: str | None = None) -> Any:
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {} if gguf_file is None else {"gguf_file": gguf_file}
    return _loaded(
        path,
        "a model in transformers' format",
        lambda: AutoConfig.from_pretrained(hub_name(path) or path, **options),
    )


def _loaded(path: str, expected: str, read: Callable[[], Any]) -> Any:
    """What a library reads; a folder of a stranger's can make it raise anything."""
    try:
        return read()
    except Exception as error:
        why = one_line(error)
        if "trust_remote_code" in str(error):
            why = "it needs code of its own, which is never run; take a model that transformers has"
        elif "ignore_mismatched_sizes" in str(error):
            why = "its weights have other shapes than config.json says"
        elif isinstance(error, (AttributeError, LookupError, RecursionError, TypeError)):
            why = f"a JSON file of it has another form than transformers expects ({why})"
        elif type(error).__name__ == "SafetensorError":
            why = f"a file of weights is cut, damaged or something else ({why}); take it again"
        raise ModelError(f"{path}: expected {expected}; loading failed with: {why}") from error


def saved_dtype(path: str | Path, wanted: DType) -> DType:
    """The precision that a model is written in; auto: that of the checkpoint it comes from.

    Args:
        path: of that checkpoint.
        wanted: as a recipe names it.
    """
    own: Any = getattr(load_config(path), "dtype", None) if wanted == "auto" else None
    half: dict[Any, DType] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    return half.get(own, "float32") if wanted == "auto" else wanted


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model (safetensors) and tokenizer as a normal Hugging Face folder."""
    _make_valid(lm.model.generation_config)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def _make_valid(config: Any) -> None:
    """Unset what a greedy generation config has no use for: transformers would not save it."""
    if config is None or config.do_sample:
        return
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def declared_ends(model: PreTrainedModel) -> list[int]:
    """The end tokens of a model's generation config, of those that it has."""
    declared: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = declared if isinstance(declared, list | tuple) else [declared]
    return [i for i in ids if isinstance(i, int) and 0 <= i < output_rows(model)]


def also_end_at(lm: LanguageModel, token: int) -> None:
    """Let a token end responses: in the generation config, where every user of the model looks.

    Raises:
        ModelError: the model has no such token.
    """
    from transformers import GenerationConfig

    if not 0 <= token < output_rows(lm.model):
        raise ModelError(
            f"{lm.name}: expected a model that can write token {token}, which ends its turns; found"
            f" one of {output_rows(lm.model)} tokens; resize its embeddings, or take another "
            "chat template"
        )
    if lm.model.generation_config is None:
        lm.model.generation_config = GenerationConfig()
    own: Any = lm.tokenizer.eos_token_id
    ends = sorted({token, *declared_ends(lm.model), *([] if own is None else [own])})
    lm.model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends  # pyright: ignore


def inner_model(model: Any) -> PreTrainedModel:
    """The causal language model inside DDP and PEFT wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_rows(model: PreTrainedModel) -> int:
    """Rows of the output layer, padding of the matrix included."""
    head = inner_model(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.vocab_size)


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Of any token; ids may have gaps, so it is not the number of tokens."""
    return max(tokenizer.get_vocab().values(), default=-1)


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
