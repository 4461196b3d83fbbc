"""Adapters that peft saved (LoRA and its kin): merged into their base, a whole model again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdistill.errors import ModelError, excerpt, one_line
from tdistill.files import hub_name
from tdistill.models.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    read_object,
    refuse_pickles,
)


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
    local = next((place for place in places if Path(place).expanduser().exists()), None)
    if local is None and hub_name(base) is None:
        raise ModelError(
            f"{folder}: expected the base of the adapter at {excerpt(base)}, found nothing there;"
            " write its folder, or hub:NAME for one on the Hugging Face hub, as "
            f"base_model_name_or_path into {ADAPTER_CONFIG}"
        )
    return local or base


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
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        kind = str(adapted.active_peft_config.peft_type).rpartition(".")[2]
        if (
            not hasattr(adapted, "merge_and_unload")
            or adapted.active_peft_config.is_prompt_learning
        ):
            raise ModelError(f"{folder}: expected an adapter that can be merged, found {kind}")
        return adapted.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{folder}: expected an adapter that fits its base; merging failed with: "
            f"{one_line(error)}"
        ) from error


def _rows_of_embedding(folder: Path) -> int | None:
    """Tokens of an input embedding that was trained with the adapter, where there is one."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
                return int(weights.get_slice(name).get_shape()[0])
    return None
