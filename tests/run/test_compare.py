"""A comparison of objectives: what it leaves, that all get the same, and how it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import digest, kill_at, read_json, write_world
from tdistill import cli
from tdistill.errors import InvalidValueError, RecipeError
from tdistill.files import locked
from tdistill.recipe import Recipe, read_recipe
from tdistill.run.compare import Comparison, Task, unite
from tdistill.run.compare_words import read_recipes, read_words

LABELS = ("seqkd", "kd")
SEEDS = 2


@dataclass(frozen=True)
class World:
    """Two recipes of one objective each, and a comparison of them that was never interrupted."""

    recipes: list[Path]
    folder: Path

    def words(self, out: Path, *more: str) -> list[str]:
        recipes = [str(recipe) for recipe in self.recipes]
        return ["compare", *recipes, "--out", str(out), "--seeds", str(SEEDS), *more]

    def comparison(self, out: Path, lines: list[str], **options: Any) -> Comparison:
        recipe = unite({str(path): read_recipe(path) for path in self.recipes})
        return Comparison(recipe, out, **{"seeds": SEEDS, "say": lines.append} | options)

    def copy(self, out: Path) -> Path:
        shutil.copytree(self.folder, out)
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("compare")
    plain = yaml.safe_load(write_world(folder / "world").read_text())
    recipes = []
    for label in LABELS:
        recipes.append(folder / f"{label}.yaml")
        recipes[-1].write_text(
            yaml.safe_dump(plain | {"objectives": {label: {}}, "distilled": label})
        )
    world = World(recipes, folder / "out")
    assert cli.main(world.words(world.folder)) == 0
    return world


def timeless(out: Path) -> Any:
    """``compare.json`` without what the clock decides."""
    plain = read_json(out / "compare.json")
    for curve in plain["curves"].values():
        for columns in (curve["mean"], *curve["seeds"]):
            del columns["tokens_per_second"]
    return {k: v for k, v in plain.items() if k not in ("created", "seconds")}


def redone(lines: list[str]) -> list[str]:
    """The stages that were done, not those reused."""
    return [line for line in lines if line.endswith("]") and "\n" not in line]


def test_it_leaves_what_it_promises(world: World):
    plain = read_json(world.folder / "compare.json")
    assert plain["baseline"] == "seqkd"
    assert list(plain["objectives"]) == list(LABELS)
    assert plain["seeds"] == {
        "training": [0, 1],
        "start": [0, 1],
        "rollouts": 0,
        "generation": [0, 1],
    }
    counts = {"objectives": 2, "training_seeds": 2, "rollout_rows": 18}
    assert counts.items() <= plain["counts"].items()
    for k in range(SEEDS):
        models = {path.name for path in (world.folder / f"seed-{k}/models").iterdir()}
        assert models == {"start", *LABELS}
        assert not list((world.folder / f"seed-{k}").glob("cache*"))
    assert {p.name for p in (world.folder / "shared/models").iterdir()} == {"untrained"}
    table = (world.folder / "compare.md").read_text()
    assert table.count("\n| SeqKD |") == 1
    assert table.count("\n| KD |") == 2
    assert "<script" not in (world.folder / "compare.html").read_text()


def test_a_finished_comparison_has_nothing_to_do(world: World, capsys: pytest.CaptureFixture[str]):
    before = digest(world.folder)
    assert cli.main(world.words(world.folder)) == 0
    said = capsys.readouterr().out
    assert "this comparison is complete; nothing to do" in said
    assert "compare.html" in said
    assert digest(world.folder) == before


def per_prompt(world: World, label: str, decoding: str, metric: str) -> list[tuple[Any, Any]]:
    """Values and weights of every seed, summed over generation seeds."""
    folders = [world.folder / f"seed-{k}" for k in range(SEEDS)]
    if label == "teacher":
        folders = [world.folder / "shared"]
    found = []
    for folder in folders:
        record = read_json(folder / f"stages/evaluate-{label}.json")["per_prompt"][decoding][metric]
        values = np.array(record["values"])
        weights = np.ones_like(values) if record["weights"] is None else np.array(record["weights"])
        rows = len(values)
        found.append((values.reshape(rows, -1).sum(1), weights.reshape(rows, -1).sum(1)))
    return found


def drawn_by_hand(runs: list[tuple[Any, Any]], prompts: Any, seeds: Any) -> float:
    value = sum(runs[s][0][p] for s in seeds for p in prompts)
    weight = sum(runs[s][1][p] for s in seeds for p in prompts)
    return value / weight


def test_the_numbers_follow_from_the_records_of_every_prompt(world: World):
    plain = read_json(world.folder / "compare.json")
    assert {s["model"] for s in plain["scores"]} == {"teacher", "start", *LABELS}
    for score in plain["scores"]:
        runs = per_prompt(world, score["model"], score["decoding"] or "", score["metric"])
        sums = np.sum([[values.sum(), weights.sum()] for values, weights in runs], axis=0)
        assert score["mean"] == pytest.approx(sums[0] / sums[1])
        assert score["seeds"] == pytest.approx([v.sum() / w.sum() for v, w in runs])
    means = {(s["model"], s["decoding"], s["metric"]): s["mean"] for s in plain["scores"]}
    for gap in plain["differences"]:
        place = (gap["decoding"], gap["metric"])
        base = ("sample" if place[0] == "tuned" else place[0], place[1])
        expected = means[gap["model"], *place] - means["seqkd", *base]
        assert gap["mean"] == pytest.approx(expected, abs=1e-12)
    assert {g["model"] for g in plain["differences"]} == {"teacher", "start", "kd"}


@pytest.mark.parametrize("place", [("", "forward_kl"), ("sample", "teacher_nll")])
def test_a_paired_interval_draws_prompts_and_seeds_alike_for_both(
    world: World, place: tuple[str, str]
):
    ours, base = (per_prompt(world, label, *place) for label in ("kd", "seqkd"))
    prompts, draws = len(ours[0][0]), 2000
    by_prompt = np.random.default_rng(0).integers(prompts, size=(draws, prompts))
    by_seed = np.random.default_rng((0, 1)).integers(SEEDS, size=(draws, SEEDS))
    pairs = list(zip(by_prompt, by_seed, strict=True))
    gaps = [drawn_by_hand(ours, p, s) - drawn_by_hand(base, p, s) for p, s in pairs]
    wanted = ("kd", place[0] or None, place[1])
    found = next(
        d
        for d in read_json(world.folder / "compare.json")["differences"]
        if (d["model"], d["decoding"], d["metric"]) == wanted
    )
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(gaps, [0.025, 0.975]))


def test_curves_are_averaged_over_seeds(world: World):
    curve = read_json(world.folder / "compare.json")["curves"]["kd"]
    histories = [
        read_json(world.folder / f"seed-{k}/stages/kd.json")["history"] for k in range(SEEDS)
    ]
    losses = [[entry["loss"] for entry in history] for history in histories]
    assert [seed["loss"] for seed in curve["seeds"]] == losses
    assert curve["mean"]["loss"] == pytest.approx(np.mean(losses, axis=0))
    assert losses[0] != losses[1]


def test_every_objective_of_a_seed_gets_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same rows in the same order from the same start; another seed, other ones."""
    from tdistill.training import train

    seen: dict[tuple[str, int], list[Any]] = {}
    original, collator = train.train_student, train.Collator
    current: list[Any] = []

    class Watched(collator):
        def __call__(self, items: Any) -> Any:
            current.append([(index, row.prompt_ids, row.response_ids) for index, row in items])
            return super().__call__(items)

    def watched(student: Any, objective: Any, rows: Any, config: Any, **options: Any) -> Any:
        start = {n: w.sum().item() for n, w in student.model.named_parameters()}
        current.clear()
        done = original(student, objective, rows, config, **options)
        seen[options["label"], config.seed] = [start, list(rows), list(current)]
        return done

    monkeypatch.setattr(train, "Collator", Watched)
    monkeypatch.setattr(train, "train_student", watched)
    comparison = world.comparison(tmp_path, [])
    comparison.run()
    assert set(seen) == {(x, k) for x in ("start", *LABELS) for k in range(SEEDS)}
    for k in range(SEEDS):
        assert seen["kd", k] == seen["seqkd", k]
        assert len(seen["kd", k][2]) >= 4
    (start, rows, order), (other_start, other_rows, other_order) = seen["kd", 0], seen["kd", 1]
    assert rows == other_rows
    assert order != other_order
    assert start != other_start
    assert seen["start", 0][0] == seen["start", 1][0]
    assert timeless(tmp_path) == timeless(world.folder)


def test_killed_it_goes_on_to_the_same_result(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    said = kill_at("after-a-checkpoint", *world.words(out))
    assert "seed-0 [evaluate-seqkd] done" in said
    assert said.endswith("seed-0 [kd]\n")
    assert (out / "seed-0/checkpoints/kd/checkpoint-2/trainer_state.json").exists()
    assert cli.main(world.words(out)) == 0
    said = capsys.readouterr().out
    assert "seed 1 of 2, objective 2 of 2 (kd); 2 of 6 done, about" in said
    assert "[seqkd]\n" not in said.split("seed-1")[0]
    assert timeless(out) == timeless(world.folder)
    for place in ("shared/cache", "seed-0/models", "seed-1/models"):
        assert digest(out / place) == digest(world.folder / place)


def test_models_that_were_not_kept_are_not_trained_again(world: World, tmp_path: Path):
    out, lines = world.copy(tmp_path / "out"), []
    shutil.rmtree(out / "seed-0/models/kd")
    (out / "compare.md").unlink()
    world.comparison(out, lines, keep_models=False).run()
    assert redone(lines) == ["[compare]"]
    lines.clear()
    world.comparison(out, lines, keep_models=False, seeds=3).run()
    assert {line.split()[0] for line in redone(lines)} == {"seed-2", "[compare]"}
    assert {p.name for p in (out / "seed-2/models").iterdir()} == {"start"}
    lines.clear()
    world.comparison(out, lines, keep_models=False, seeds=3).run()
    assert redone(lines) == []


def test_other_settings_of_an_objective_train_it_alone(world: World, tmp_path: Path):
    out = world.copy(tmp_path / "out")
    words = world.words(out, "--objectives.kd.discount", "0.5", "--baseline", "kd")
    assert cli.main(words) == 0
    for k in range(SEEDS):
        same = [x for x in ("start", *LABELS) if _record(out, k, x) == _record(world.folder, k, x)]
        assert same == ["start", "seqkd"]
    assert read_json(out / "compare.json")["baseline"] == "kd"


def _record(out: Path, seed: int, label: str) -> bytes:
    return (out / f"seed-{seed}/stages/{label}.json").read_bytes()


def test_what_another_process_works_on_is_left_to_it(world: World, tmp_path: Path):
    out, lines = world.copy(tmp_path / "out"), []
    for label in LABELS:
        (out / f"seed-0/stages/evaluate-{label}.json").unlink()
    comparison = world.comparison(out, lines)
    tasks = [Task(0, label) for label in LABELS]
    assert comparison._pending() == tasks
    with locked(out / "locks/seed-0-seqkd") as held, locked(out / "locks/seed-0-seqkd") as twice:
        assert (held, twice) == (True, False)
        assert comparison._do_one(tasks)
        assert comparison._pending() == tasks[:1]
        assert not comparison._do_one(tasks[:1])
    assert comparison._do_one(tasks[:1])
    assert comparison._pending() == []


def failing(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    from tdistill.evaluation import evaluate

    original: Callable[..., Any] = evaluate.judge

    def judge(name: str, *arguments: Any) -> Any:
        if name == label:
            raise RuntimeError("probability tensor contains inf")
        return original(name, *arguments)

    monkeypatch.setattr(evaluate, "judge", judge)


def test_an_objective_that_fails_is_left_out_named_and_tried_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = world.copy(tmp_path / "out")
    for name in ("compare.json", "seed-1/stages/evaluate-kd.json"):
        (out / name).unlink()
    with monkeypatch.context() as patch:
        failing(patch, "kd")
        assert cli.main(world.words(out)) == 1
        plain = read_json(out / "compare.json")
        assert plain["failed"] == {"kd, seed 1": "RuntimeError: probability tensor contains inf"}
        assert list(plain["objectives"]) == ["seqkd"]
        assert "Traceback" in (out / "failed/seed-1-kd.txt").read_text()
        with pytest.raises(InvalidValueError, match="baseline: expected one that trains, but kd"):
            world.comparison(out, [], baseline="kd").run()
    assert cli.main(world.words(out)) == 0
    assert timeless(out) == timeless(world.folder)


def test_recipes_that_disagree_are_refused_with_all_they_differ_in(world: World):
    first, second = map(str, world.recipes)
    changed = ["--training.steps", "5", "--start", "null", "--data.limit_test", "3"]
    recipes = {first: read_recipe(world.recipes[0]), second: read_recipe(world.recipes[1], changed)}
    with pytest.raises(RecipeError) as caught:
        unite(recipes)
    text = str(caught.value)
    assert f"training.steps: 4 in {first}, 5 in {second}" in text
    assert f"data.limit_test: None in {first}, 3 in {second}" in text
    assert f"start.training.steps: 6 in {first}, nothing in {second}" in text
    assert "rollouts" not in text


def labelled(world: World, *overrides: str) -> Recipe:
    return read_recipe(world.recipes[1], overrides)


def test_one_label_has_one_meaning(world: World):
    same = unite({"a": labelled(world), "b": labelled(world)})
    assert list(same.objectives) == ["kd"]
    with pytest.raises(
        RecipeError, match=r"objectives.kd: other settings in b.yaml than in a.yaml"
    ):
        unite(
            {"a.yaml": labelled(world), "b.yaml": labelled(world, "--objectives.kd.discount", "0")}
        )


def test_values_of_the_command_line_reach_the_recipes_they_are_for(world: World):
    words = [*map(str, world.recipes), "--out=o", "--objectives.kd.discount", "0.5"]
    seqkd, kd = read_recipes(read_words([*words, "--training.steps=3"])).values()
    assert (seqkd.training.steps, kd.training.steps) == (3, 3)
    assert kd.objectives["kd"].discount == 0.5
    assert list(seqkd.objectives) == ["seqkd"]
    with pytest.raises(InvalidValueError, match="found none of sft"):
        read_recipes(read_words([*words, "--objectives.sft.discount", "1"]))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["r.yaml"], "expected RECIPE.yaml"),
        (["--out", "o"], "expected RECIPE.yaml"),
        (
            ["r.yaml", "--out", "o", "--seeds", "many"],
            "--seeds: expected a whole number, found many",
        ),
        (["r.yaml", "--out", "o", "--keep-models"], "--keep-models: expected true or false"),
    ],
)
def test_wrong_words_are_refused(words: list[str], text: str):
    with pytest.raises(InvalidValueError, match=text):
        read_words(words)


def test_a_baseline_and_seeds_that_cannot_be_are_refused(world: World, tmp_path: Path):
    with pytest.raises(
        InvalidValueError, match=r"baseline: expected one of the objectives \(seqkd"
    ):
        world.comparison(tmp_path, [], baseline="sft")
    with pytest.raises(InvalidValueError, match="seeds: expected at least 1, found 0"):
        world.comparison(tmp_path, [], seeds=0)
