"""Recipes: defaults, overrides, and the combinations that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tdistill
from tdistill import strict
from tdistill.errors import ModelError, RecipeError
from tdistill.files import resolve_path
from tdistill.recipe import Recipe, read_recipe, read_recipes, recipe_dict
from tdistill.training.config import LoraConfig
from tdistill.training.objectives import KD, SFT, BellmanDistill, SeqKD

SMALLEST = "teacher: {path: t}\nstudent: {layers: 2}\n"


def write(folder: Path, text: str = SMALLEST) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_teacher_and_student_are_enough(tmp_path: Path):
    recipe = read_recipe(write(tmp_path))
    assert list(recipe.objectives) == ["sft", "seqkd", "kd", "bellman_distill"]
    assert list(recipe.objectives.values()) == [SFT(), SeqKD(), KD(), BellmanDistill()]
    assert recipe.distilled == "bellman_distill"
    assert list(recipe.evaluation.decodings) == ["greedy", "sample", "nucleus"]
    assert recipe.start is not None
    assert recipe.data.train == "demo:train"


def test_the_resolved_recipe_is_the_same_recipe(tmp_path: Path):
    recipe = read_recipe(write(tmp_path), ["--objectives.kd.support", "set", "--start", "null"])
    resolved = write(tmp_path, yaml.safe_dump(recipe_dict(recipe)))
    assert read_recipe(resolved) == recipe == read_recipe(str(resolved))
    assert recipe_dict(read_recipe(resolved)) == recipe_dict(recipe)


def test_overrides_win_over_the_file(tmp_path: Path):
    path = write(tmp_path, SMALLEST + "training: {steps: 5, batch_size: 8}\n")
    words = ["--training.steps", "7", "--rollouts.capture.max_set_size=null"]
    words += ["--objectives.bellman_distill.alpha", "0.5", "--student.layers=3"]
    recipe = read_recipe(path, words)
    assert (recipe.training.steps, recipe.training.batch_size) == (7, 8)
    assert recipe.rollouts.capture.max_set_size is None
    assert recipe.student.layers == 3
    found = recipe.objectives["bellman_distill"]
    assert isinstance(found, BellmanDistill)
    assert found.alpha == 0.5


def test_objectives_may_have_other_names(tmp_path: Path):
    text = SMALLEST + (
        "distilled: strong\nobjectives:\n"
        "  strong: {objective: bellman_distill, alpha: 0.05}\n"
        "  kd-live: {objective: kd, support: vocabulary}\n"
    )
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.objectives["strong"] == BellmanDistill(alpha=0.05)
    assert recipe.objectives["kd-live"].needs_live_teacher


REFUSED: list[tuple[str, str]] = [
    ("trainin: {steps: 3}", r"unknown key.*did you mean 'training'"),
    ("training: {step: 3}", r"training\.step: unknown key.*did you mean 'steps'"),
    ("training: {steps: few}", r"training\.steps: expected an integer, found the string 'few'"),
    ("training: {steps: 10000000000000000000000}", r"steps: expected at most 1,073,741,824"),
    ("seeds: 0", r"seeds: expected from 1 to 1000, found 0"),
    ("seeds: 1000000000", r"seeds: expected from 1 to 1000, found 1000000000"),
    ("objectives: {kd: {}, KD: {objective: kd}}\ndistilled: kd", r"more than case, found kd, KD"),
    ("training: {steps: 0}", r"training: steps: expected at least 1, found 0"),
    ("training: {steps: 2.5}", r"training\.steps: expected an integer, found the number 2.5"),
    ("training: {batch_size: 6, gradient_accumulation: 4}", r"training: batch_size: .*multiple of"),
    ("start: {rows: teachers}", r"start\.rows: expected .*did you mean 'teacher'"),
    ("distilled: bellman", r"distilled: expected one of the objectives"),
    ("objectives: {kdd: {}}", r"objectives\.kdd\.objective: missing; .*did you mean 'kd'"),
    (
        "distilled: teacher\nobjectives: {teacher: {objective: kd}}",
        r"objectives: expected names .*, found teacher",
    ),
    ("distilled: 'a/b'\nobjectives: {'a/b': {objective: kd}}", r"objectives: expected names .*a/b"),
    (f"objectives: {{{'a' * 65}: {{objective: kd}}}}\ndistilled: {'a' * 65}", r"at most 64, not a"),
    ("objectives: {bellman_distill: {alpha: 0}}", r"bellman_distill: alpha: expected above 0"),
    (
        "objectives: {bellman_distill: {set_top_p: 0.95}}",
        r"objectives\.bellman_distill\.set_top_p: expected at most .*captured_top_p = 0.9",
    ),
    ("evaluation: {set_top_p: 0.95}", r"evaluation\.set_top_p: expected at most"),
    ("evaluation: {tuned_models: [begin]}", r"tuned_models: expected among teacher, start.*begin"),
    ("rollouts: {sampling_top_p: 1.5}", r"rollouts: sampling_top_p: expected a mass in \(0, 1\]"),
    (
        "rollouts: {capture: {max_set_size: 0}}",
        r"rollouts\.capture: max_set_size: expected at least 1",
    ),
    ("data: {format: csv}", r"data\.format: expected .*found the string 'csv'"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED, ids=[text for text, _ in REFUSED])
def test_what_cannot_work_is_refused_with_its_path(tmp_path: Path, text: str, problem: str):
    path = write(tmp_path, f"{SMALLEST}{text}\n")
    with pytest.raises(RecipeError, match=problem) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ("{}", "expected exactly one of the two, found layers = None and path = None"),
        (
            "{layers: 2, path: s}",
            "expected exactly one of the two, found layers = 2 and path = /.*/s",
        ),
        ("{layers: 2, choose: greed}", r"\.choose: expected .* 'greed'; did you mean 'greedy'"),
        ("{layers: 2, measured_tokens: 0}", "measured_tokens: expected at least 1, found 0"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(tmp_path: Path, student: str, expected: str):
    path = write(tmp_path, f"teacher: {{path: t}}\nstudent: {student}\n")
    with pytest.raises(RecipeError, match=rf"student.*{expected}"):
        read_recipe(path)


def test_all_problems_are_told_at_once(tmp_path: Path):
    path = write(tmp_path, "teacher: {pat: t}\nstudent: {layers: two}\ntraining: {stps: 1}\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    text = str(caught.value)
    assert "4 problems" in text
    for place in ("teacher.pat:", "teacher.path: missing", "student.layers:", "training.stps:"):
        assert place in text


def test_a_live_teacher_needs_no_captured_mass(tmp_path: Path):
    words = ["--rollouts.capture.captured_top_p", "0.5", "--evaluation.set_top_p", "0.5"]
    words += ["--objectives.sft.set_top_p=0.5", "--objectives.seqkd.set_top_p=0.5"]
    words += ["--objectives.bellman_distill.set_top_p=null"]
    recipe = read_recipe(write(tmp_path), words)
    assert recipe.objectives["bellman_distill"].set_top_p is None


def test_the_demo_recipe_is_valid():
    demo = Path(tdistill.__file__).parent / "demo/recipe.yaml"
    recipe = read_recipe(demo)
    assert recipe.data.test == "demo:test"
    assert recipe.distilled in recipe.objectives


def test_every_field_is_documented():
    lines = list(strict.describe(Recipe))
    assert len(lines) > 150
    assert [entry.path for entry in lines if not entry.type_text] == []


def test_reading_a_recipe_imports_no_torch(tmp_path: Path):
    path = write(tmp_path)
    program = (
        "import sys; from pathlib import Path; from tdistill.recipe import read_recipe\n"
        f"read_recipe(Path({str(path)!r}))\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def write_two(folder: Path, second: str = "") -> list[Path]:
    """Recipes of one objective each; ``second`` is more text of the second."""
    paths = [folder / "kd.yaml", folder / "sft.yaml"]
    for path, more in zip(paths, ("", second), strict=True):
        objectives = f"distilled: {path.stem}\nobjectives: {{{path.stem}: {{}}}}\n"
        path.write_text(SMALLEST + objectives + more)
    return paths


def options(*words: str) -> list[strict.Option]:
    return strict.split_words(words)[1]


def test_recipes_that_differ_in_their_objectives_are_one(tmp_path: Path):
    words = ["--training.steps=3", "--objectives.sft.discount=1", "--distilled=sft"]
    recipe = read_recipes(write_two(tmp_path), options(*words))
    assert recipe.objectives == {"kd": KD(), "sft": SFT(discount=1.0)}
    assert (recipe.training.steps, recipe.distilled, recipe.baseline) == (3, "sft", None)
    assert read_recipes(write_two(tmp_path)[:1]).distilled == "kd"


def test_recipes_that_differ_elsewhere_are_refused_with_every_field(tmp_path: Path):
    first, second = write_two(tmp_path, "training: {seed: 4}\nstart: null\n")
    with pytest.raises(RecipeError, match="differ in their objectives alone") as caught:
        read_recipes([first, second])
    text = str(caught.value)
    assert f"training.seed: 0 in {first}, 4 in {second}" in text
    assert f"start.training.steps: 1000 in {first}, nothing in {second}" in text
    assert "rollouts" not in text
    assert "setting the field on the command line" in text
    made_equal = read_recipes([first, second], options("--training.seed=1", "--start=null"))
    assert made_equal.training.seed == 1


def test_one_label_for_two_settings_is_refused(tmp_path: Path):
    first, second = write_two(tmp_path)
    second.write_text(second.read_text().replace("sft: {}", "sft: {}, kd: {discount: 1}"))
    expected = r"objectives\.kd: other settings in .*sft\.yaml than in .*kd\.yaml"
    with pytest.raises(RecipeError, match=expected):
        read_recipes([first, second])


def test_a_value_of_the_command_line_may_be_wrong_in_united_recipes_too(tmp_path: Path):
    paths = write_two(tmp_path)
    with pytest.raises(RecipeError, match=r"command line: objectives\.nope\.objective: missing"):
        read_recipes(paths, options("--objectives.nope.discount=1"))
    with pytest.raises(RecipeError, match="baseline: expected one of the objectives"):
        read_recipes(paths, options("--baseline=nope"))


def test_lora_can_be_set_where_it_is_null(tmp_path: Path):
    for text in (SMALLEST, SMALLEST + "training: {lora: null, steps: 5}\n"):
        lora = read_recipe(write(tmp_path, text), ["--training.lora.rank", "8"]).training.lora
        assert lora == LoraConfig(rank=8)


def test_an_objective_can_be_added_and_flags_written_either_way(tmp_path: Path):
    words = ["--objectives.mine.alpha", "3", "--objectives.mine.objective", "bellman_distill"]
    recipe = read_recipe(write(tmp_path), [*words, "--training.bf16", "true"])
    assert recipe.objectives["mine"] == BellmanDistill(alpha=3.0)
    assert list(recipe.objectives) == ["sft", "seqkd", "kd", "bellman_distill", "mine"]
    for words, wanted in ((["--training.bf16"], True), (["--training.no-bf16"], False)):
        path = write(tmp_path, SMALLEST + f"training: {{bf16: {str(not wanted).lower()}}}\n")
        assert read_recipe(path, words).training.bf16 is wanted
        given = read_recipe(path, ["--training.bf16", str(wanted).lower()])
        assert given.training.bf16 is wanted


def test_a_hub_name_in_a_recipe_is_a_folder_and_the_error_says_how_to_mean_the_hub(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: {path: gpt2}\nstudent: {layers: 2}\n")
    recipe = read_recipe(path)
    assert recipe.teacher.path == str(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"or hub:OWNER/NAME for one of the Hugging Face hub"):
        resolve_path(recipe.teacher.path)
    path.write_text("teacher: {path: 'hub:gpt2'}\nstudent: {layers: 2}\n")
    assert read_recipe(path).teacher.path == "hub:gpt2"
