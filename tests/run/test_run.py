"""A whole run: what it leaves, what it reuses, and what a change makes it do again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import LABELS, OBJECTIVES, PHASE, Finished, digest, read_json, untimed, write_rows
from tdistill import cli
from tdistill.errors import CacheError, DataError, ModelError
from tdistill.models.language_model import LanguageModel, save
from tdistill.recipe import Recipe, read_recipe
from tdistill.run import Run, run_recipe
from tdistill.run.groundwork import Groundwork
from tdistill.run.keys import result_key, stage_keys
from tdistill.run.students import Students
from tdistill.teacher.adaptive import choose_top_p
from tdistill.teacher.cache.manifest import read_manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tiny import tiny_lm, tiny_model, tokenizer


def again(finished: Finished, folder: Path, *overrides: str) -> tuple[list[str], dict[str, Any]]:
    """Run in a copy of the finished folder; returns the lines said and the metrics."""
    shutil.copytree(finished.folder, folder)
    lines: list[str] = []
    run_recipe(read_recipe(finished.recipe, overrides), str(folder), lines.append)
    return lines, read_json(folder / "metrics.json")


def keys(recipe: Recipe) -> dict[str, str]:
    return stage_keys(recipe) | {"report": result_key(recipe)}


def redone(lines: list[str]) -> set[str]:
    return {line[1:-1] for line in lines if line.startswith("[") and line.endswith("]")}


def test_it_leaves_what_it_promises(finished: Finished):
    for name in ("recipe.resolved.yaml", "metrics.json", "report.html", "data-doctor.txt"):
        assert (finished.folder / name).stat().st_size > 0
    assert (finished.folder / "cache/manifest.json").exists()
    assert (finished.folder / "student/model.safetensors").exists()
    assert {p.name for p in (finished.folder / "models").iterdir()} == {
        "untrained",
        "start",
        "sft",
        "seqkd",
        "kd",
        "bellman_distill",
    }
    student = digest(finished.folder / "student")
    assert student.pop("README.md")
    assert student == digest(finished.folder / "models/bellman_distill")
    assert not any((finished.folder / "checkpoints").iterdir())


def test_the_metrics_say_what_was_done(finished: Finished):
    metrics = finished.metrics
    assert metrics["versions"]["torch"] == version("torch")
    assert {"tdistill", "python", "transformers"} <= set(metrics["versions"])
    seeds = {"rollouts": 0, "start": [0], "training": [0], "generation": [0, 1]}
    assert metrics["seeds"] == seeds
    assert metrics["recipe"] == yaml.safe_load(
        (finished.folder / "recipe.resolved.yaml").read_text()
    )
    sizes = metrics["parameters"]
    assert list(sizes) == list(LABELS)
    assert all(sizes[label] < sizes["teacher"] for label in LABELS[1:])
    counts = metrics["counts"]
    assert (counts["train_prompts"], counts["rollout_rows"]) == (9, 18)
    assert counts["rollout_steps"] == metrics["cache"]["steps"]
    assert {x: len(curve["mean"]["step"]) for x, curve in metrics["curves"].items()} == {
        "start": 6,
        **dict.fromkeys(OBJECTIVES, PHASE["steps"]),
    }
    assert set(metrics["seconds"]["train"]) == {"start", *OBJECTIVES}


def test_every_model_is_judged_in_three_decodings(finished: Finished):
    rows = {(s["model"], s["decoding"]): s for s in finished.metrics["scores"]}
    decodings = ("greedy", "sample", "nucleus")
    assert set(rows) == {(m, d) for m in LABELS for d in decodings} | {("start", "tuned")}
    assert rows["start", "tuned"]["temperature"] == 0.5
    for (_, decoding), row in rows.items():
        assert row["seeds"] == (1 if decoding == "greedy" else 2)
        assert row["prompts"] == finished.metrics["counts"]["test_prompts"]
        assert (row["metrics"]["reverse_kl"] is None) == (decoding == "greedy")
        assert row["metrics"]["teacher_nll"]["mean"] > 0
    imitation = {i["model"]: i["metrics"] for i in finished.metrics["imitation"]}
    assert set(imitation) == set(LABELS)
    assert abs(imitation["teacher"]["forward_kl"]["mean"]) < 1e-6
    assert all(imitation[label]["forward_kl"]["mean"] > 1e-3 for label in LABELS[1:])


def test_references_are_scored_by_the_teacher_for_an_objective_on_their_sets(
    finished: Finished, tmp_path: Path
):
    lines, metrics = again(finished, tmp_path / "run", "--objectives.sft.support", "set")
    assert "sft" in redone(lines)
    assert all(0 < leak < 1 for leak in metrics["curves"]["sft"]["mean"]["leak"])
    assert "leak" not in finished.metrics["curves"]["sft"]["mean"]


def test_the_student_is_a_normal_model(finished: Finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student: Any = AutoModelForCausalLM.from_pretrained(finished.folder / "student")
    words: Any = AutoTokenizer.from_pretrained(finished.folder / "student")
    assert student.config.num_hidden_layers == 2
    inputs = words(["a b c"], return_tensors="pt")
    made = student.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=5,
        do_sample=False,
    )
    assert made.shape[1] > inputs["input_ids"].shape[1]


def test_the_report_is_one_file(finished: Finished):
    page = (finished.folder / "report.html").read_text()
    assert "bellman" in page.lower()
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_second_run_reuses_everything(finished: Finished, capsys: pytest.CaptureFixture[str]):
    before = digest(finished.folder)
    started = time.process_time()
    assert cli.main(["run", str(finished.recipe), "--out", str(finished.folder)]) == 0
    assert time.process_time() - started < 2
    assert "this run is complete; nothing to do" in capsys.readouterr().out
    assert digest(finished.folder) == before


def test_the_stages_are_the_same_as_the_run(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(finished.folder, tmp_path / "out")
    (tmp_path / "out/report.html").unlink()
    for command in ("rollouts", "train", "evaluate"):
        words = [command, str(finished.recipe), "--out", str(tmp_path / "out")]
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert f"{command} done" in said
        assert "] done" not in said
    assert not (tmp_path / "out/report.html").exists()


def test_the_resolved_recipe_is_the_same_run(finished: Finished, tmp_path: Path):
    given = read_recipe(finished.recipe)
    resolved = read_recipe(finished.folder / "recipe.resolved.yaml")
    assert resolved == given
    assert keys(resolved) == keys(given)
    Run(resolved, tmp_path).begin()
    assert (tmp_path / "recipe.resolved.yaml").read_bytes() == (
        finished.folder / "recipe.resolved.yaml"
    ).read_bytes()


def test_a_changed_objective_is_trained_alone(finished: Finished, tmp_path: Path):
    lines, metrics = again(finished, tmp_path / "out", "--objectives.bellman_distill.alpha", "0.3")
    changed = {"bellman_distill", "evaluate-bellman_distill"}
    assert redone(lines) == changed | {"publish", "report"}
    old = finished.metrics
    kept = [s for s in metrics["scores"] if s["model"] != "bellman_distill"]
    assert kept == [s for s in old["scores"] if s["model"] != "bellman_distill"]
    names = ("sft", "seqkd", "kd", "start")
    assert all(metrics["curves"][name] == old["curves"][name] for name in names)
    assert metrics["curves"]["bellman_distill"] != old["curves"]["bellman_distill"]
    student = "student/model.safetensors"
    assert (tmp_path / "out" / student).read_bytes() != (finished.folder / student).read_bytes()


def test_a_tolerated_gap_is_resolved_on_the_cache_and_recorded(finished: Finished, tmp_path: Path):
    gap = ("--objectives.kd.tolerated_gap", "5", "--objectives.kd.gap_rule", "per-state")
    lines, _ = again(finished, tmp_path / "out", *gap)
    assert redone(lines) == {"kd", "evaluate-kd", "report"}
    chosen = choose_top_p(Cache(tmp_path / "out" / "cache"), 5.0, discount=0.99, rule="per-state")
    assert read_json(tmp_path / "out" / "stages" / "kd.json")["sets"] == asdict(chosen)
    assert f"  {chosen.text()}" in lines


def test_another_distilled_objective_puts_its_own_model_in_student(
    finished: Finished, tmp_path: Path
):
    lines, metrics = again(finished, tmp_path / "out", "--distilled", "kd")
    assert redone(lines) == {"publish", "report"}
    student = digest(tmp_path / "out/student")
    assert "README.md" in student
    assert digest(finished.folder / "models/kd").items() <= student.items()
    assert digest(tmp_path / "out/models") == digest(finished.folder / "models")
    assert untimed(metrics)["scores"] == untimed(finished.metrics)["scores"]


SAMPLED = {"rollouts", "references", "held-out", "student", "start", *OBJECTIVES}
KEYS: list[tuple[list[str], set[str]]] = [
    (["--objectives.kd.discount", "0.5"], {"kd"}),
    (["--training.steps", "5"], set(OBJECTIVES)),
    (["--start.training.steps", "5"], {"start", *OBJECTIVES}),
    (["--evaluation.seeds", "3"], set()),
    (["--student.layers", "1"], {"student", "start", *OBJECTIVES}),
    (["--rollouts.seed", "1"], SAMPLED),
    (["--data.limit_train", "3"], SAMPLED),
    (["--evaluation.rollouts_per_prompt", "2"], {"held-out"}),
]


@pytest.mark.parametrize(
    ("overrides", "stages"), KEYS, ids=lambda v: "" if type(v) is set else v[0]
)
def test_a_key_depends_on_its_own_fields(
    finished: Finished, overrides: list[str], stages: set[str]
):
    old, new = keys(read_recipe(finished.recipe)), keys(read_recipe(finished.recipe, overrides))
    changed = {name for name in old if old[name] != new[name]}
    assert {
        name for name in changed if not name.startswith(("evaluate-", "publish", "report"))
    } == stages
    assert "report" in changed
    judged = {f"evaluate-{name}" for name in stages & set(LABELS)}
    if stages & {"held-out"} or "--evaluation.seeds" in overrides:
        judged = {f"evaluate-{name}" for name in LABELS}
    assert {name for name in changed if name.startswith("evaluate-")} == judged


@pytest.mark.parametrize(("split", "stage"), [("train", "rollouts"), ("test", "held-out")])
def test_a_key_depends_on_the_content_of_data(
    finished: Finished, tmp_path: Path, split: str, stage: str
):
    data = tmp_path / "rows.jsonl"
    write_rows(data, ["a b", "c d e"])
    recipe = read_recipe(finished.recipe, [f"--data.{split}", str(data)])
    old = keys(recipe)
    assert keys(recipe) == old
    write_rows(data, ["a b", "c d f"])
    assert keys(recipe)[stage] != old[stage]


def loaded(finished: Finished, folder: Path, *overrides: str) -> tuple[Groundwork, list[str]]:
    lines: list[str] = []
    recipe = read_recipe(finished.recipe, ["--data.limit_train", "4", *overrides])
    return Run(recipe, folder, lines.append).groundwork, lines


def test_prompts_of_train_are_left_out_of_test(finished: Finished, tmp_path: Path):
    rows = tmp_path / "mixed.jsonl"
    ground, _ = loaded(finished, tmp_path / "probe")
    first = ground.load_examples()["train"][0].prompt
    write_rows(rows, [first, "z z z", first, "y"])
    ground, lines = loaded(
        finished, tmp_path / "out", "--data.test", str(rows), "--data.valid", str(rows)
    )
    assert [e.prompt for e in ground.load_examples()["test"]] == ["z z z", "y"]
    for split in ("test", "valid"):
        assert f"  {split}: left out 2 prompts that are also in train" in lines


def test_prompts_of_test_are_left_out_of_valid(finished: Finished, tmp_path: Path):
    test, valid = tmp_path / "test.jsonl", tmp_path / "valid.jsonl"
    write_rows(test, ["z z z", "y"])
    write_rows(valid, ["x x", "y", "z z", "z z z"])
    ground, lines = loaded(
        finished, tmp_path / "out", "--data.test", str(test), "--data.valid", str(valid)
    )
    found = ground.load_examples()
    assert [e.prompt for e in found["valid"]] == ["x x", "z z"]
    assert [e.prompt for e in found["test"]] == ["z z z", "y"]
    assert "  valid: left out 2 prompts that are also in test" in lines


def test_a_test_split_of_nothing_but_train_is_refused(finished: Finished, tmp_path: Path):
    train = read_recipe(finished.recipe).data.train
    ground, _ = loaded(finished, tmp_path, "--data.test", train, "--data.limit_test", "2")
    with pytest.raises(DataError, match="expected test prompts that are not in"):
        ground.sample_rollouts()


def other_tokenizer() -> LanguageModel:
    """A model whose token 5 means another word."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = tokenizer().backend_tokenizer.to_str().replace('"a":2', '"A":2')
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), eos_token="<end>", pad_token="<end>"
    )
    return LanguageModel(tiny_model("llama"), words, "other")


def with_student(finished: Finished, folder: Path) -> Recipe:
    overrides = ["--student.layers", "null", "--student.path", str(folder)]
    return read_recipe(finished.recipe, overrides)


def test_a_student_of_another_tokenizer_is_refused_before_any_work(
    finished: Finished, tmp_path: Path
):
    save(other_tokenizer(), tmp_path / "other")
    with pytest.raises(ModelError, match="tokenizers differ"):
        run_recipe(with_student(finished, tmp_path / "other"), tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out/cache").exists()


def test_a_student_deeper_than_the_teacher_is_refused_before_any_work(
    finished: Finished, tmp_path: Path
):
    recipe = read_recipe(finished.recipe, ["--student.layers", "4"])
    with pytest.raises(ModelError, match="layers: expected from 1 to the teacher's 3, found 4"):
        run_recipe(recipe, tmp_path, lambda line: None)
    assert not (tmp_path / "cache").exists()


def test_a_given_student_is_the_start(finished: Finished, tmp_path: Path):
    save(tiny_lm("qwen2", seed=3, num_hidden_layers=1), tmp_path / "given")
    run = Run(with_student(finished, tmp_path / "given"), tmp_path / "out", lambda line: None)
    run.groundwork.check_student()
    assert run.groundwork.count_vocabulary() == 64
    run.seeds[0].train("start")
    config = read_json(tmp_path / "out/models/start/config.json")
    assert (config["model_type"], config["num_hidden_layers"]) == ("qwen2", 1)


def test_without_a_start_phase_objectives_start_from_the_bare_student(
    finished: Finished, tmp_path: Path
):
    ground, _ = loaded(finished, tmp_path, "--start", "null")
    Students(ground).train("start")
    weights = "model.safetensors"
    start = (tmp_path / "models/start" / weights).read_bytes()
    assert start == (tmp_path / "models/untrained" / weights).read_bytes()


def test_a_start_phase_taken_back_is_done_again(finished: Finished, tmp_path: Path):
    shutil.copytree(finished.folder, tmp_path / "out")
    for overrides, expected in ((["--start", "null"], "untrained"), ([], "start")):
        recipe = read_recipe(finished.recipe, overrides)
        Run(recipe, tmp_path / "out", lambda line: None).seeds[0].train("start")
        found = tmp_path / "out/models/start/model.safetensors"
        wanted = finished.folder / "models" / expected / "model.safetensors"
        assert found.read_bytes() == wanted.read_bytes()


def test_rows_of_the_start_phase(finished: Finished, tmp_path: Path):
    ground, _ = loaded(finished, tmp_path)
    references, examples = ground.collect_rows("references"), ground.load_examples()["train"]
    assert [row.prompt_ids for row in references] == [e.prompt_ids for e in examples]
    assert all(row.response_ids[-1] == 1 and row.ended for row in references)
    assert len(ground.collect_rows("teacher")) == 8


def test_other_capture_settings_do_not_mix_with_a_cache(finished: Finished, tmp_path: Path):
    shutil.copytree(finished.folder, tmp_path / "out")
    recipe = read_recipe(finished.recipe, ["--rollouts.capture.captured_top_p", "0.95"])
    Run(recipe, tmp_path / "out", lambda line: None).sample_rollouts()
    found = read_manifest(tmp_path / "out/cache")
    assert found.identity.captured_top_p == 0.95
    assert digest(tmp_path / "out/replaced/cache") == digest(finished.folder / "cache")
    with pytest.raises(CacheError, match=r"captured_top_p: expected 0.95, found 0.9"):
        CacheWriter(tmp_path / "out/replaced/cache", found.identity)


def test_more_rollouts_leave_the_old_ones_out(finished: Finished, tmp_path: Path):
    shutil.copytree(finished.folder, tmp_path / "out")
    recipe = read_recipe(finished.recipe, ["--rollouts.seed", "7"])
    ground = Run(recipe, tmp_path / "out", lambda line: None).groundwork
    assert len(ground.sample_rollouts()) == 18
    assert len(ground.open_cache("train")) == 36


def test_a_gguf_teacher_is_converted_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tdistill.models.language_model

    opened: list[Any] = []
    original: Callable[..., Any] = tdistill.models.language_model.load

    def load(path: Any, *, gguf_file: str | None = None, **options: Any) -> Any:
        opened.append(gguf_file)
        return tiny_lm("llama") if gguf_file else original(path, **options)

    monkeypatch.setattr(tdistill.models.language_model, "load", load)
    for expected in (["t.gguf", None], [None]):
        ground, _ = loaded(finished, tmp_path, "--teacher.gguf_file", "t.gguf")
        assert ground.load_teacher().num_parameters == tiny_lm("llama").num_parameters
        assert opened == expected
        opened.clear()
