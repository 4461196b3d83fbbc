"""Adapters that peft saved (LoRA and its kin): merged into their base, a whole model again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tdistill.errors import ModelError, excerpt, one_line
from tdistill.files import expanded, hub_name
from tdistill.models.architecture import note_untied
from tdistill.models.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    read_object,
    refuse_pickles,
)

_MOST_BASES = 16
_LAYER = re.compile(r".*?\.\d+(?=\.)")
_MERGING = 0.02  # of the largest logit, that rounding may change: weights may be bfloat16


def adapter_base(path: str) -> str | None:
    """The base that a folder of an adapter is for; None for a whole model.

    Args:
        path: a folder, or ``hub:NAME``.

    Returns:
        The path of the base, as a model's.

    Raises:
        ModelError: the adapter has no base that is known, or changes more than weights.
    """
    folder = Path(path)
    if hub_name(path) is not None or not (folder / ADAPTER_CONFIG).exists():
        return None
    adapter = read_object(folder / ADAPTER_CONFIG)
    if (folder / CONFIG).exists() and any(folder.glob("model*.safetensors")):
        if not (folder / ADAPTER_WEIGHTS).exists():
            return None  # merged, with its old configuration left behind
        raise ModelError(
            f"{folder}: expected a model or an adapter, found both ({CONFIG} and {ADAPTER_CONFIG} "
            "with weights); give a folder with one of them"
        )
    refuse_pickles(folder)
    if adapter.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{folder}: expected an adapter of a causal language model, found one for "
            f"{excerpt(adapter['task_type'])}"
        )
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: expected base_model_name_or_path, found none")
    places = [base, *([] if Path(base).is_absolute() else [str(folder / base)])]
    local = next((place for place in places if expanded(place).exists()), None)
    if local is not None and expanded(local).resolve() == folder.resolve():
        raise ModelError(f"{folder / ADAPTER_CONFIG}: expected the folder of a base, found its own")
    if local is None and hub_name(base) is None:
        raise ModelError(
            f"{folder}: expected the base of the adapter at {excerpt(base)}, found nothing there;"
            " write its folder, or hub:NAME for one on the Hugging Face hub, as "
            f"base_model_name_or_path into {ADAPTER_CONFIG}"
        )
    return local or base


def adapter_bases(path: str) -> list[str]:
    """The base of an adapter, the base's own where it is an adapter too, and so on.

    Args:
        path: a folder, or ``hub:NAME``; of a whole model there is none.

    Raises:
        ModelError: as `adapter_base`, or adapters that are each other's base.
    """
    bases: list[str] = []
    base = adapter_base(path)
    while base is not None:
        if len(bases) == _MOST_BASES:
            raise ModelError(
                f"{path}: expected an adapter of a whole model, found {_MOST_BASES} adapters, each "
                "the base of the one before; merge them into a model first"
            )
        bases.append(base)
        base = adapter_base(base)
    return bases


def merged(model: Any, folder: Path) -> Any:
    """A base with the adapter of a folder merged into its weights.

    Args:
        model: the base; changed in place.
        folder: of the adapter.

    Raises:
        ModelError: peft is not installed, or the adapter does not fit or cannot be merged.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{folder}: expected the package peft, which merges adapters, found none; "
            "pip install 'tdistill[peft]'"
        ) from error
    rows = _rows_of_embedding(folder)
    try:
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)  # which the adapter fills
        _untie(model, _saved_names(folder))
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        kind = str(adapted.active_peft_config.peft_type).rpartition(".")[2]
        if (
            not hasattr(adapted, "merge_and_unload")
            or adapted.active_peft_config.is_prompt_learning
        ):
            raise ModelError(f"{folder}: expected an adapter that can be merged, found {kind}")
        _refuse_other_base(adapted, folder)
        return _checked_merge(adapted.eval(), folder)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{folder}: expected an adapter that fits its base; merging failed with: "
            f"{one_line(error)}"
        ) from error


def _saved_names(folder: Path) -> list[str]:
    """Names of the weights of an adapter."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        return list(weights.keys())


def _untie(model: Any, names: Sequence[str]) -> None:
    """Let a tied output layer have weights of its own, where an adapter changes one of the two."""
    from torch.nn import Parameter

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    own = {name for name, module in model.named_modules() if module in (head, embedding)}
    low_rank = [name for name in names if "lora_" in name or "hada_" in name or "lokr_" in name]
    if any(f".{module}." in name for module in own for name in low_rank):
        head.weight = Parameter(head.weight.detach().clone())
        note_untied(model)


def _refuse_other_base(adapted: Any, folder: Path) -> None:
    """Refuse a base that has other layers than the one that the adapter was trained on."""
    from peft import get_peft_model_state_dict

    saved = _layers_of(_saved_names(folder))
    taken = _layers_of(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if saved != taken:
        raise ModelError(
            f"{folder}: expected the base that the adapter was trained on, found one with other "
            f"layers: {len(saved ^ taken)} are in one of the two alone (first: "
            f"{excerpt(min(saved ^ taken))}); correct base_model_name_or_path in {ADAPTER_CONFIG}"
        )


def _layers_of(names: Iterable[str]) -> set[str]:
    """The layers, by name and number, that weights are in."""
    return {found.group() for name in names if (found := _LAYER.match(name))}


def _checked_merge(adapted: Any, folder: Path) -> Any:
    """The adapter merged, if the merged model gives the logits that the adapted one gave."""
    import torch

    network = adapted.get_base_model()
    rows = int(network.get_input_embeddings().weight.shape[0])
    ids = torch.arange(1, 9, device=network.device)[None] * 37 % rows
    with torch.no_grad():
        before = network(input_ids=ids, use_cache=False).logits.float()
        model = adapted.merge_and_unload(safe_merge=True)
        after = model(input_ids=ids, use_cache=False).logits.float()
    if before.isfinite().all() and not torch.allclose(
        after, before, atol=_MERGING * float(before.abs().max()), rtol=0.0
    ):
        difference = float((after - before).abs().max())
        raise ModelError(
            f"{folder}: expected an adapter that can be merged; the merged model gives other "
            f"logits than base and adapter (by up to {difference:.2g} nats); merge it with the "
            "program that trained it"
        )
    return model


def _rows_of_embedding(folder: Path) -> int | None:
    """Tokens of an input embedding that was trained with the adapter, where there is one."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
                return int(weights.get_slice(name).get_shape()[0])
    return None
