"""Verifiers of responses: exact match, a user's own function, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from judging import END, exam, examples, student

from pipeline import write_world
from tdistill import cli
from tdistill.errors import DataError, InvalidValueError
from tdistill.evaluation.config import EvaluationConfig
from tdistill.evaluation.evaluate import judge, tuned_temperature
from tdistill.evaluation.responses import Responses, verified
from tdistill.evaluation.verifier import Verifier, load_verifier
from tdistill.models.decoding import Decoding
from tdistill.models.generation import Response
from tdistill.report.result import read_result
from tdistill.report.tables import quality_metric, table_columns

OWN = """
def right(response, references, prompt):
    return {result}
"""


def own(folder: Path, result: str = "response in references") -> str:
    """A verifier of a user's own; returns its import path."""
    (folder / "mine.py").write_text(OWN.format(result=result))
    return f"{folder}/mine.py:right"


def test_exact_match_takes_any_of_several_references_and_leaves_white_space_out():
    exact = load_verifier("exact")
    two = examples("ab", " seven\n")[0]
    assert [exact(text, two) for text in ("ab", " seven", "ab\n")] == [1.0, 1.0, 1.0]
    assert [exact(text, two) for text in ("Ab", "a b", "", "ab seven")] == [0.0] * 4


def test_every_prompt_and_seed_gets_a_verdict_of_its_own():
    ab, c = Response((2, 3, END), True), Response((4,), False)
    made = Responses(Decoding(), [[ab, c], [ab, ab], [c, c]])
    pair = examples("ab", prompts=("k",)) + examples("c", "ab", prompts=("l",))
    found = verified(made, pair, student(), load_verifier("exact"))
    assert found.values.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    interval = found.interval()
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(5 / 6), 2 / 3, 1.0)


def test_an_own_function_sees_response_references_and_prompt(tmp_path: Path):
    path = own(tmp_path, "0.25 if (response, references, prompt) == ('x', ['y', 'z'], 'k') else 1")
    found = load_verifier(path)
    assert found("x", examples("y", "z", prompts=("k",))[0]) == 0.25
    assert found.metric == "verified"
    assert found.source_file == tmp_path / "mine.py"


@pytest.mark.parametrize("result", ["'yes'", "None", "2", "-0.1", "float('nan')"])
def test_a_verdict_of_another_kind_is_refused_by_name(result: str, tmp_path: Path):
    verifier = load_verifier(own(tmp_path, result))
    with pytest.raises(InvalidValueError, match=r"from .*mine.py:right, found .* 'a b'"):
        verifier("a b", examples("y")[0])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("exakt", "verify: expected exact or FILE.py:FUNCTION, found 'exakt'; did you mean"),
        ("nothing.py:f", "expected a file .*nothing.py, found none"),
        ("tdistill.checks:nothing", "function nothing.response, references, prompt. in tdistill"),
        ("tdistill.errors:DataError", "expected a function DataError.*found <class"),
        ("tdistill.checks:check_mass", "expected a function .*found check_mass.name: 'str', value"),
    ],
)
def test_a_name_without_a_verifier_is_refused_before_any_work(named: str, message: str):
    with pytest.raises(InvalidValueError, match=message):
        EvaluationConfig(verify=named)


def test_prompts_that_cannot_be_judged_are_refused(tmp_path: Path):
    bare = [*examples("y", prompts=("k",)), *examples(prompts=("l",))]
    with pytest.raises(DataError, match="a reference for every prompt, found none for 1 of 2"):
        load_verifier("exact").try_out(bare)
    load_verifier(own(tmp_path)).try_out(bare)
    with pytest.raises(InvalidValueError, match="found 'wrong'"):
        Verifier("mine", lambda response, references, prompt: "wrong").try_out(bare)


def test_the_temperature_is_chosen_by_the_verifier(tmp_path: Path):
    path = own(tmp_path, "'a' in response")
    chosen: dict[str | None, float] = {}
    for named in (None, path):
        prepared = exam(
            valid=examples("zz", prompts=("k l", "m", "n o p")),
            verify=named,
            tuned_temperatures=(0.2, 0.9, 3.0),
        )
        chosen[named] = tuned_temperature("start", student(), prepared)
    # No response holds zz: Rouge-L is 0 everywhere, and the last of equals is taken.
    assert chosen[None] == 3.0
    rates = {}
    for temperature in (0.2, 0.9, 3.0):
        prepared = exam(
            test=examples("zz", prompts=("k l", "m", "n o p")),
            verify=path,
            decodings={"one": Decoding(temperature=temperature)},
        )
        metrics = judge("start", student(), prepared)["scores"][0]["metrics"]
        rates[temperature] = metrics["verified"]["mean"]
    assert chosen[path] == max(rates, key=lambda t: (rates[t], t))
    assert len(set(rates.values())) > 1


@pytest.mark.slow
def test_a_run_judges_all_models_and_again_when_the_function_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    recipe = write_world(tmp_path / "world")
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text())
    settings["objectives"] = {"kd": {}, "sft": {}}
    settings["distilled"] = "kd"
    settings["evaluation"]["verify"] = own(tmp_path, "len(response) % 2 == 0")
    recipe.write_text(yaml.safe_dump(settings))
    command = ["run", str(recipe), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    result = read_result(tmp_path / "out" / "metrics.json")
    assert quality_metric(result) == "verified"
    decodings = {(s.model, s.decoding) for s in result.scores if s.metrics["verified"]}
    shared = {(m, d) for m in ("teacher", "start", "kd", "sft") for d in result.decodings}
    assert decodings == shared | {("start", "tuned")}
    assert result.difference("sft", "kd", "verified", "greedy") is not None
    assert "verified" in [column.metric for column in table_columns(result)]
    assert "Verified, greedy" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "mine.py").write_text(OWN.format(result="True  # changed"))
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "[kd] reused" in said
    assert "[evaluate-kd] done" in said


@pytest.mark.slow
def test_a_wrong_verifier_ends_a_run_before_any_work(tmp_path: Path):
    recipe = write_world(tmp_path / "world")
    command = ["run", str(recipe), "--out", str(tmp_path / "out"), "--evaluation.verify"]
    assert cli.main([*command, own(tmp_path, "response")]) != 0
    assert not (tmp_path / "out" / "cache").exists()
    assert cli.main([*command, "exact"]) == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    assert all(score["metrics"]["exact_match"] is not None for score in scores)
    for score in scores:
        metrics, sampled = score["metrics"], score["decoding"] != "greedy"
        assert ("pass_at_1" in metrics) == sampled
        assert "pass_at_5" not in metrics  # there are two seeds
        assert (metrics["sequence_reverse_kl"] is None) == (not sampled)
        assert (metrics["exposure_bias"] is None) == (score["model"] == "teacher")
        for name in ("entropy", "repetition", "own_forward_kl", "response_tokens", "ended"):
            assert metrics[name]["low"] is not None, name
