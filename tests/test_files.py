"""Names of models and data, and fingerprints of what they name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdistill import files
from tdistill.errors import ModelError
from tdistill.files import fingerprint, resolve_path


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


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "~/none-x", "../none", "a/b/c"])
def test_a_missing_local_path_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="expected a folder with a model, found nothing there"):
        resolve_path(path)


def test_folders_and_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_path("model") == "model"
    assert resolve_path("~/model") == str(tmp_path / "model")
    assert resolve_path("owner/name") == "owner/name"
    assert resolve_path("gpt2") == "gpt2"


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


def test_the_fingerprint_of_a_folder_is_of_its_files(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(str(tmp_path))
    (tmp_path / "weights").write_text("1")
    second = fingerprint(str(tmp_path))
    (tmp_path / "weights").rename(tmp_path / "other")
    assert len({first, second, fingerprint(str(tmp_path))}) == 3


def test_large_files_are_told_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_WHOLE_BELOW", 2)
    file = tmp_path / "weights"
    file.write_text("abc")
    os.utime(file, (1, 1))
    first = fingerprint(str(file))
    file.write_text("xyz")
    os.utime(file, (1, 1))
    assert fingerprint(str(file)) == first
    os.utime(file, (2, 2))
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
