"""Stages of a run: each is done once, and again only if what it depends on has changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tdistill.errors import StorageError, TdistillError
from tdistill.files import fingerprint, storage_error, write_atomically
from tdistill.hashing import checksum_of
from tdistill.models.finite import keeping_bad_batch
from tdistill.models.model_files import CONFIG
from tdistill.plain_json import BadJSON, read_json_object
from tdistill.processes import is_first_process, process_rank
from tdistill.progress import emit
from tdistill.run.folders import STUDENT

Say = Callable[[str], None]
_NOTE = "key.txt"
_OF_A_MODEL = ("safetensors", "json", "jinja")
_LARGEST_RECORD = 1 << 32  # bytes: responses to all test prompts may be in it
_SEEN_WITHIN = 120.0  # seconds until files that another machine wrote are seen


def open_workplace(folder: Path, key: str) -> None:
    """A folder that is new, or holds what was left by interrupted work of the same key."""
    if folder.exists() and workplace_key(folder) != key:
        shutil.rmtree(folder)
    note_key(folder, key)


def note_key(folder: Path, key: str) -> None:
    """Write down what the work in a folder is for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _NOTE, key)


def workplace_key(folder: Path) -> str | None:
    """The key of the work that a folder was opened for; None if none was noted."""
    note = folder / _NOTE
    return note.read_text(encoding="utf-8") if note.exists() else None


def read_record(path: Path) -> dict[str, Any] | None:
    """What a stage left, with ``key``, ``seconds`` and ``files``; None if it is not as written.

    A record of another release, cut off or changed by hand is none: its stage is done again.
    """
    with suppress(OSError, BadJSON):
        record = read_json_object(path, most=_LARGEST_RECORD)
        return record if record.get("sha256") == checksum_of(record) else None
    return None


class Stages:
    """Records of finished stages in a folder.

    Args:
        folder: of the run; records go to ``stages/`` in it.
        say: prints a line for people.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder / "stages"
        self.say = say

    def finished(self, name: str, key: str, outputs: Sequence[Path]) -> dict[str, Any] | None:
        """The record of a stage if it was finished with this key and its outputs are there.

        Models among the outputs must be those that the stage wrote.
        """
        record = read_record(self.folder / f"{name}.json")
        if record is None or record["key"] != key or not all(path.exists() for path in outputs):
            return None
        within = {path.parent for path in outputs}
        return None if any(file.parent in within for file in self._changed(record)) else record

    def changed(self, name: str, key: str) -> list[Path]:
        """Files of models that a finished stage wrote and that are others, or damaged, by now."""
        record = read_record(self.folder / f"{name}.json")
        return [] if record is None or record["key"] != key else self._changed(record)

    def _changed(self, record: Mapping[str, Any]) -> list[Path]:
        written = {self.folder.parent / name: content for name, content in record["files"].items()}
        return [
            f for f, content in written.items() if f.exists() and fingerprint(str(f)) != content
        ]

    def _written(self, outputs: Sequence[Path]) -> dict[str, str]:
        """What is in the files of the models among the outputs, by their paths in the folder.

        Of the copy that people take, weights alone: they may change what else is there.
        """
        folders = [path.parent for path in outputs if path.name == CONFIG]
        kinds = {x: ("safetensors",) if x.name == STUDENT else _OF_A_MODEL for x in folders}
        files = sorted(f for x, names in kinds.items() for n in names for f in x.glob(f"*.{n}"))
        of_run = self.folder.parent
        return {os.path.relpath(file, of_run): fingerprint(str(file)) for file in files}

    def records(self, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The records of the stages that are finished with these keys."""
        found = {name: self.finished(name, key, []) for name, key in keys.items()}
        return {name: record for name, record in found.items() if record is not None}

    def run(
        self,
        name: str,
        key: str,
        outputs: Sequence[Path],
        work: Callable[[], dict[str, Any]],
        *,
        together: bool = False,
    ) -> dict[str, Any]:
        """Do a stage, or reuse it.

        Of the processes of a launched run the first one does it and keeps the record; the others
        come when it is done.

        Args:
            name: of the stage.
            key: hash of all it depends on.
            outputs: files and folders it leaves; a missing one means that it is done again.
            work: does it, and returns what is worth recording.
            together: all processes do it, and come at the same time.

        Returns:
            The record: what ``work`` returned, with ``key``, ``seconds`` and ``files``.

        Raises:
            StorageError: if there is no room, or no permission, to write what the stage leaves.
            NonFiniteError: a model gives no numbers; the batch is in ``failed/``.
        """
        record = self.finished(name, key, outputs)
        if record is not None:
            self._tell(name, "reused")
            return record
        for file in self.changed(name, key):
            self.say(f"  {file}: not as it was written, so {name} is done again")
        if not is_first_process():
            return work() if together else self._seen(name, key, outputs)
        self._tell(name, "begun")
        path = self.folder / f"{name}.json"
        started = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # its outputs are about to change
            with keeping_bad_batch(self.folder.parent / "failed" / f"{name}.json"):
                made = work()
            seconds = round(time.monotonic() - started, 1)
            record = {**made, "key": key, "seconds": seconds, "files": self._written(outputs)}
            record = json.loads(json.dumps(record))  # as whoever reads it finds it
            record["sha256"] = checksum_of(record)
            write_atomically(path, json.dumps(record))
        except Exception as error:
            told = None if isinstance(error, TdistillError) else storage_error(error, self.folder)
            if told is None:
                raise
            raise told from error
        self._tell(name, "done", record["seconds"])
        return record

    def _seen(self, name: str, key: str, outputs: Sequence[Path]) -> dict[str, Any]:
        """The record that the first process has made."""
        until = time.monotonic() + _SEEN_WITHIN
        while (record := self.finished(name, key, outputs)) is None:
            if time.monotonic() > until:
                raise StorageError(
                    f"{self.folder}: process {process_rank()} expected {name} there, which process "
                    "0 made, found none; give --out a folder that all machines of the run share"
                )
            time.sleep(0.5)
        return record

    def _tell(self, name: str, state: str, seconds: float | None = None) -> None:
        """Say how far a stage is: to people in a line, to programs as an event."""
        told = {"begun": "", "reused": " reused", "done": f" done in {seconds or 0.0:.0f} s"}
        self.say(f"[{name}]{told[state]}")
        if is_first_process():
            emit("stage", name=name, state=state, seconds=seconds, run=str(self.folder.parent))
