"""What is in a model's folder, looked at before a library opens it: weights are data, never code.

Weights are read from safetensors alone. Pickles can run code when they are opened, and so can the
Python files that a checkpoint may bring; neither is ever loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tdistill.errors import ModelError, excerpt
from tdistill.files import fingerprint, resolve_path
from tdistill.hashing import key_of
from tdistill.plain_json import BadJSON, read_json_object

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
_NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
_NEVER_READ = (".md", ".py", ".log", ".png", ".jpg", ".pdf", *(name[1:] for name in _PICKLES))
_RECORDS = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
_TEMPLATES = "additional_chat_templates/*.jinja"  # of a tokenizer that has several
_CONFIGS = (CONFIG, "generation_config.json", ADAPTER_CONFIG)
_TOLD = ("_name_or_path", "transformers_version", "base_model_name_or_path")  # fields of those
_NUMBERS = ("F64", "F32", "F16", "BF16")
_MOST_PARTS = 10_000  # layers, or experts of one
_PARTS = ("layer", "expert", "block")


def model_content(path: str) -> str:
    """Changes when what is read of a model does: not with its place, its page or its training log.

    Of configurations the values count, but not where the model was and which release wrote them.

    Args:
        path: a folder, ``package:NAME`` or ``hub:NAME``.
    """
    try:
        folder = Path(resolve_path(path))
    except ModelError:
        return path
    if not folder.is_dir():
        return fingerprint(path)
    inside = (*folder.iterdir(), *folder.glob(_TEMPLATES), *_parts_within(folder))
    files = sorted({file for file in inside if file.is_file() and _is_read(file)})
    return key_of([(str(file.relative_to(folder)), _file_content(file)) for file in files])


def _parts_within(folder: Path) -> list[Path]:
    """Files of weights that an index names in folders of its own."""
    with suppress(ModelError, OSError):
        parts = read_object(folder / _INDEX).get("weight_map")
        names = parts.values() if isinstance(parts, dict) else ()
        return [folder / name for name in names if isinstance(name, str) and _is_within(name)]
    return []


def _is_within(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _is_read(file: Path) -> bool:
    return not (
        file.name.startswith((".", "LICENSE"))
        or file.suffix.lower() in _NEVER_READ
        or file.name in _RECORDS
    )


def _file_content(file: Path) -> str:
    if file.name in _CONFIGS:
        with suppress(ModelError):
            values = read_object(file)
            return key_of({name: x for name, x in values.items() if name not in _TOLD})
    return fingerprint(str(file))


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose weights are missing, pickled, elsewhere, or of an absurd size.

    Raises:
        ModelError: in one line, what it is and what to do.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected a folder with a model, found a file")
    if not (folder / CONFIG).exists():
        raise ModelError(
            f"{folder}: expected a model in transformers' format, found no {CONFIG}; give the "
            "folder that save_pretrained wrote"
        )
    _check_sizes(folder / CONFIG)
    if (folder / _INDEX).exists():
        _check_index(folder)
    elif not (folder / _WEIGHTS).exists() and "transformers_weights" not in read_object(
        folder / CONFIG
    ):
        raise ModelError(f"{folder}: expected {_WEIGHTS}, found {_what_else(folder)}")
    if not any("quant" in name or "compress" in name for name in read_object(folder / CONFIG)):
        _refuse_codes(folder)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        ModelError: it is none.
    """
    try:
        return read_json_object(path)
    except BadJSON as error:
        raise ModelError(
            f"{path}: expected a JSON object, found {error}; the file is damaged: take the model "
            "again from where it came"
        ) from error


def refuse_pickles(folder: Path) -> None:
    """Refuse weights of an adapter that are not safetensors.

    Raises:
        ModelError: there are none that can be read.
    """
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ModelError(f"{folder}: expected {ADAPTER_WEIGHTS}, found {_what_else(folder)}")


def _what_else(folder: Path) -> str:
    names = {path.name for pattern in _PICKLES for path in folder.glob(pattern)} - _NOT_WEIGHTS
    if names:
        return (
            f"{min(names)}, a pickle, which can run code when it is opened and is never loaded; "
            "where you trust it, load it with transformers and save_pretrained it again"
        )
    if any(folder.glob("*.gguf")):
        return f"{min(folder.glob('*.gguf')).name}; name it as gguf_file"
    return "none; the download may be incomplete"


def _check_index(folder: Path) -> None:
    """Every part that an index names is a safetensors file in the folder."""
    parts = read_object(folder / _INDEX).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise ModelError(f"{folder / _INDEX}: expected a weight_map of names to file names")
    for name in sorted(set(parts.values())):
        path = PurePosixPath(name)
        if not _is_within(name) or path.suffix != ".safetensors":
            raise ModelError(
                f"{folder / _INDEX}: expected names of safetensors files in its own folder, found "
                f"{excerpt(name)}; take the checkpoint from a source that you trust"
            )
        if not (folder / path).exists():
            raise ModelError(
                f"{folder}: expected {excerpt(name)}, which {_INDEX} names, found none; the "
                "download may be incomplete"
            )


def _check_sizes(path: Path) -> None:
    """A config asks for modules by number: a billion of them would fill the memory."""
    for name, value in _numbers(read_object(path)):
        if value > _MOST_PARTS and any(part in name for part in _PARTS):
            raise ModelError(
                f"{path}: {name}: expected at most {_MOST_PARTS}, found {str(value)[:20]}; the "
                "file is damaged"
            )


def _refuse_codes(folder: Path) -> None:
    """Refuse weights that are the codes of a quantiser, which would be taken for numbers.

    Files that cannot be opened are left to who loads them.
    """
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("model*.safetensors")):
        with suppress(SafetensorError, OSError), safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118
                kind = weights.get_slice(name).get_dtype() if name.endswith("weight") else "F32"
                if kind not in _NUMBERS:
                    raise ModelError(
                        f"{folder}: expected weights that are numbers ({', '.join(_NUMBERS)}), "
                        f"found {excerpt(name)} in {kind}, without a quantization_config in "
                        f"{CONFIG} that says what it stands for; take the whole checkpoint, or one "
                        "in bfloat16"
                    )


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value
