"""What a source names: a file, a pattern of files, a dataset's folder, the demo, or the hub."""

from __future__ import annotations

import difflib
import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from tdistill.data.readers import ROW_SUFFIXES, SourceRow, read_file, row_place, without_nulls
from tdistill.errors import DataError
from tdistill.files import DEMO_PREFIX, HUB_PREFIX, expanded

UNDERSTOOD = (
    f"a file ({', '.join(ROW_SUFFIXES)}), a pattern of such files (train-*.parquet), a folder "
    "saved by datasets.save_to_disk, demo:SPLIT, or hub:OWNER/NAME for a data set of the hub"
)
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>.+))?")


def read_rows(source: str, *, limit: int | None = None) -> list[SourceRow]:
    """Read the first rows of a source, in order.

    Args:
        source: as in ``DataConfig``.
        limit: number of rows to read; ``None`` reads all.

    Returns:
        The rows, blank lines of a JSONL file left out; files of a pattern in the order of names.

    Raises:
        DataError: nothing at this path, a kind of file that is not understood, or damaged content.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 row of {source}; found {limit}. Raise it.")
    return list(itertools.islice(_rows(source), limit))


def _rows(source: str) -> Iterator[SourceRow]:
    if source.startswith(DEMO_PREFIX):
        return _demo_rows(source.removeprefix(DEMO_PREFIX))
    if source.startswith(HUB_PREFIX):
        return _hub_rows(source)
    files = matching_paths(source)
    return itertools.chain.from_iterable(
        _folder_rows(path) if path.is_dir() else read_file(path) for path in files
    )


def column_names(rows: Sequence[SourceRow]) -> tuple[str, ...]:
    """All columns of the rows that hold a value somewhere, in order of appearance."""
    return tuple(
        dict.fromkeys(
            name for row in rows for name, value in row.values.items() if value is not None
        )
    )


def matching_paths(source: str) -> list[Path]:
    """The path that a source names, or the files that its pattern matches, in the order of names.

    In a pattern ``*`` stands for any name and ``**`` for any folders.

    Raises:
        DataError: there is nothing; the text names the folder that was searched.
    """
    path = expanded(source)
    if path.exists() or not glob.has_magic(source):
        return [existing_path(source)]
    # glob, not Path.glob: the pattern may be absolute.
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [match for match in found if match.is_file()]
    if not files:
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        folder = Path(*fixed).resolve()
        raise DataError(
            f"data source: expected files that match {source}; found none in {folder}. "
            "Correct the pattern."
        )
    return files


def existing_path(source: str) -> Path:
    """The path of a source that must exist.

    Raises:
        DataError: there is nothing; the text names the folder that was searched.
    """
    path = expanded(source)
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise DataError(
            f"{path}: expected a file or a folder, which can be read again; found a pipe, a socket "
            "or a device. Write the rows to a file."
        )
    parent, missing = path.parent, path.name
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    near = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    hint = f" Nearest existing name: {parent / near[0]}." if near else ""
    if _HUB_NAME.fullmatch(source) and not path.suffix:
        hint += f" A data set of the Hugging Face hub is named {HUB_PREFIX}{source}."
    raise DataError(
        f"data source: expected {UNDERSTOOD}; found nothing at {source} "
        f"(searched {parent.resolve()}).{hint or ' Correct the path.'}"
    )


def demo_path() -> Path:
    """The file of prompts that ships with the package."""
    return Path(str(resources.files("tdistill") / "demo" / "prompts.jsonl"))


def _demo_rows(split: str) -> Iterator[SourceRow]:
    rows = list(read_file(demo_path()))
    chosen = [row for row in rows if row.values.get("split") == split]
    if not chosen:
        splits = sorted({str(row.values.get("split")) for row in rows})
        raise DataError(
            f"data source: expected one of {', '.join(DEMO_PREFIX + name for name in splits)}; "
            f"found {DEMO_PREFIX}{split}. Use one of these names."
        )
    return iter(chosen)


def _hub_rows(source: str) -> Iterator[SourceRow]:
    """Rows of a data set of the hub, which is asked only where the user wrote so."""
    found = _HUB_NAME.fullmatch(source.removeprefix(HUB_PREFIX))
    if found is None:
        raise DataError(
            f"data source: expected {HUB_PREFIX}OWNER/NAME, with /CONFIGURATION and :SPLIT where "
            f"needed; found {source}. Write it so."
        )
    from datasets import load_dataset

    split = found["split"] or "train"
    try:
        dataset = load_dataset(found["name"], found["config"], split=split)
    # The library raises errors of many kinds of its own, of HTTP and of Arrow.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise DataError(
            f"{source}: expected a data set of the hub with the split {split}; found none that "
            f"can be loaded ({reason}). Correct the name, or save the data set to a folder."
        ) from error
    return _dataset_rows(dataset, source)


def _folder_rows(path: Path) -> Iterator[SourceRow]:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DataError(
            f"{path}: expected one split; found a dataset with the splits {', '.join(splits)}. "
            f"Name one, for example {path / splits[0] if splits else path / 'train'}."
        )
    if not (path / "dataset_info.json").exists():
        held = sorted({f.suffix for f in path.rglob("*") if f.name.endswith(ROW_SUFFIXES)})
        pattern = f"a pattern of the files in it ({path}/**/*{held[0]})" if held else "a file in it"
        raise DataError(
            f"{path}: expected a folder saved by datasets.save_to_disk; found a folder without "
            f"dataset_info.json. Name {pattern}, or save the dataset with save_to_disk."
        )
    import pyarrow
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DataError(
            f"{path}: expected a folder saved by datasets.save_to_disk; found one that cannot be "
            f"read ({reason}). Save the dataset again."
        ) from error
    return _dataset_rows(dataset, path)


def _dataset_rows(dataset: object, source: object) -> Iterator[SourceRow]:
    from datasets import Dataset

    assert isinstance(dataset, Dataset)
    for index, values in enumerate(dataset.with_format(None)):
        yield SourceRow(row_place(source, index), without_nulls(dict(values)))
