"""Names of models and data, and fingerprints of what they name."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tdistill import files, hashing
from tdistill.errors import ModelError, StorageError
from tdistill.files import (
    fingerprint,
    hub_name,
    locked,
    replacing_folder,
    resolve_path,
    storage_error,
    write_atomically,
)

LINUX = sys.platform == "linux"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a model in it, which must not be imported."""
    folder = tmp_path / "site/some_teacher_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site/only_a_module.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_package_is_found_but_not_imported(package: Path):
    assert resolve_path("package:some_teacher_weights") == str(package)


@pytest.mark.parametrize("name", ["no_such_x", "no_such_x.sub", "", "only_a_module"])
@pytest.mark.usefixtures("package")
def test_a_missing_package_is_refused(name: str):
    with pytest.raises(ModelError, match=f"package:{name}: expected an installed package"):
        resolve_path(f"package:{name}")


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "~/none-x", "../none", "a/b/c", ""])
def test_a_missing_local_path_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"found nothing there.*; give the folder of a model"):
        resolve_path(path)


@pytest.mark.parametrize("path", ["gpt2", "owner/name", "Qwen/Qwen2.5-0.5B"])
def test_a_plain_name_is_a_folder_and_the_hub_is_asked_only_by_name(path: str):
    with pytest.raises(ModelError, match=f"found nothing there .*write hub:{path}$"):
        resolve_path(path)
    assert resolve_path(f"hub:{path}") == f"hub:{path}"
    assert hub_name(f"hub:{path}") == path
    assert hub_name(path) is None


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "/etc", "a b", "-x", "https://x.y/z"])
def test_what_is_no_hub_name_is_refused(name: str):
    with pytest.raises(ModelError, match="expected hub:NAME or hub:OWNER/NAME"):
        resolve_path(f"hub:{name}")


def test_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_path("model") == "model"
    assert resolve_path("~/model") == str(tmp_path / "model")


def test_a_fingerprint_follows_the_content(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    first = fingerprint(str(file))
    os.utime(file, (0, 0))
    assert fingerprint(str(file)) == first
    file.write_text("two")
    second = fingerprint(str(file))
    file.write_text("one")
    assert (second != first, fingerprint(str(file))) == (True, first)


def test_a_name_with_the_signs_of_a_pattern_is_no_pattern_where_it_is_there(tmp_path: Path):
    places = [tmp_path / name for name in ("plain", "a*b", "[ab]", "a?")]
    for place in places:
        place.mkdir()
        (place / "rows.jsonl").write_text("x")
    assert len({fingerprint(str(place)) for place in places}) == 1


def test_the_fingerprint_of_a_folder_is_of_its_files(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(str(tmp_path))
    (tmp_path / "weights").write_text("1")
    second = fingerprint(str(tmp_path))
    (tmp_path / "weights").rename(tmp_path / "other")
    assert len({first, second, fingerprint(str(tmp_path))}) == 3


def test_neither_place_nor_time_counts(tmp_path: Path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "b/.cache").write_text("hidden")
    os.utime(tmp_path / "b/config.json", (1, 1))
    assert fingerprint(str(tmp_path / "a")) == fingerprint(str(tmp_path / "b"))
    (tmp_path / "one.jsonl").write_text("row")
    (tmp_path / "two.jsonl").write_text("row")
    assert fingerprint(str(tmp_path / "one.jsonl")) == fingerprint(str(tmp_path / "two.jsonl"))
    assert fingerprint(str(tmp_path / "a/*.json")) == fingerprint(str(tmp_path / "b/*.json"))


def test_of_large_weights_a_sample_is_read_and_of_other_large_files_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_WHOLE_BELOW", 2)
    monkeypatch.setattr(hashing, "_PART_BYTES", 4)
    monkeypatch.setattr(hashing, "_PARTS", 3)
    content = bytearray(b"header.....middle.....end.")
    for name in ("rows.jsonl", "model.safetensors"):
        file = tmp_path / name
        file.write_bytes(content)
        first = fingerprint(str(file))
        seen = []
        for at in range(len(content)):
            changed = bytearray(content)
            changed[at] ^= 1
            file.write_bytes(changed)
            os.utime(file, (at, at))
            seen.append(fingerprint(str(file)) != first)
        sampled = [*range(4), *range(11, 15), *range(22, 26)]
        everything = name == "rows.jsonl"
        assert seen == [everything or at in sampled for at in range(len(content))]
        file.write_bytes(content + b"x")
        assert fingerprint(str(file)) != first


def test_names_that_are_not_local_stand_for_themselves():
    assert fingerprint(None) == "none"
    assert fingerprint("owner/name") == "owner/name"
    assert fingerprint("./not-there") == "./not-there"


def test_the_demo_counts_with_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    first, other = fingerprint("demo:train"), fingerprint("demo:test")
    assert first.startswith("demo:train=")
    assert first.split("=")[1] == other.split("=")[1]
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/prompts.jsonl").write_text("{}")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    assert fingerprint("demo:train") != first


def test_a_pattern_follows_the_files_it_matches(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    pattern = str(tmp_path / "*.txt")
    first = fingerprint(pattern)
    assert fingerprint(pattern) == first
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    edited = fingerprint(pattern)
    (tmp_path / "b.txt").write_text("three", encoding="utf-8")
    assert len({first, edited, fingerprint(pattern)}) == 3


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    write_atomically(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_the_folder_entry_is_written_too_and_text_is_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced, original = [], os.fsync

    def fsync(number: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{number}").readlink()) if LINUX else "")
        original(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "note", "\N{GREEK SMALL LETTER PI}")
    assert (tmp_path / "note").read_bytes() == b"\xcf\x80"
    if LINUX:
        assert synced == [str(tmp_path / ".note.partial"), str(tmp_path)]


def test_one_holds_a_lock_at_a_time(tmp_path: Path):
    path = tmp_path / "locks/one"
    other = (
        "import pathlib, sys; from tdistill.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as held: print(held)"
    )

    def elsewhere() -> str:
        words = [sys.executable, "-c", other, str(path)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    with locked(path) as held, locked(path) as twice:
        assert (held, twice, elsewhere()) == (True, False, "False")
    assert elsewhere() == "True"
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path, wait=True) as held:
        assert held


def test_a_lock_does_not_outlive_its_owner(tmp_path: Path):
    path = tmp_path / "lock"
    owner = (
        "import os, pathlib, signal, sys; from tdistill.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as held: os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", owner, str(path)], check=False)
    assert killed.returncode != 0
    with locked(path, wait=True) as held:
        assert held


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "models" / "kd"
    with replacing_folder(folder) as partial:
        (partial / "weights").write_text("old")
        assert not folder.exists()
    with pytest.raises(RuntimeError), replacing_folder(folder) as partial:
        (partial / "weights").write_text("ne")
        raise RuntimeError
    assert (folder / "weights").read_text() == "old"
    (tmp_path / "models/.kd.partial").mkdir()  # left by a kill
    (tmp_path / "models/.kd.partial/rest").write_text("x")
    with replacing_folder(folder) as partial:
        (partial / "weights").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert (folder / "weights").read_text() == "new"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["kd"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "full"), "expected room to write, found .* GB free .*make room"),
        (OSError(errno.EFBIG, "big"), "expected room to write"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on dev"),
        (PermissionError(errno.EACCES, "no", "/x/y"), "/x/y: expected a place that may be written"),
        (OSError(errno.EROFS, "read-only"), "expected a place that may be written"),
        (NotADirectoryError(errno.ENOTDIR, "no", "/x/y"), "/x/y: expected a folder, found"),
        (FileExistsError(errno.EEXIST, "no", "/x/y"), "/x/y: expected a folder, found something"),
        (IsADirectoryError(errno.EISDIR, "no", "/x/y"), "/x/y: expected a file, found something"),
        (FileNotFoundError(errno.ENOENT, "no", "/x/y"), None),
        (ValueError("another kind"), None),
    ],
)
def test_what_is_wrong_with_the_disk_is_said(error: Exception, text: str | None, tmp_path: Path):
    found = storage_error(error, tmp_path / "not" / "there" / "yet")
    if text is None:
        assert found is None
        return
    assert isinstance(found, StorageError)
    assert re.search(text, str(found))
    assert len(str(found).splitlines()) == 1


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP])
def test_a_path_that_no_system_opens_is_one_short_line(number: int):
    found = storage_error(OSError(number, "x", "/" + "a" * 5000), Path())
    assert found is not None
    assert "expected a path that can be opened" in str(found)
    assert len(str(found)) < 300


def test_a_disk_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def acquire(self: object, timeout: float) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(StorageError, match="found one without"), locked(tmp_path / "lock"):
        pass
