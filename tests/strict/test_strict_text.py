from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from tdistill.errors import RecipeError
from tdistill.strict import Option, load_yaml, split_words, structure


@dataclass(frozen=True)
class Distil:
    name: ClassVar[str] = "bellman_distill"

    alpha: float = 0.1
    phi: Literal["chi_square", "identity"] = "chi_square"


@dataclass(frozen=True)
class Kd:
    name: ClassVar[str] = "kd"

    cached: bool = True


@dataclass(frozen=True)
class Constant:
    name: ClassVar[str] = "constant"

    rate: float


@dataclass(frozen=True)
class Cosine:
    name: ClassVar[str] = "cosine"

    warmup_steps: int = 100


@dataclass(frozen=True)
class Training:
    learning_rate: float = 5e-6
    steps: int = 10
    use_cache: bool = False
    schedule: Constant | Cosine = field(default_factory=Cosine)


@dataclass(frozen=True)
class Recipe:
    teacher: str
    out: Path = Path("runs/x")
    training: Training = field(default_factory=lambda: Training(steps=7))
    objectives: dict[str, Distil | Kd] = field(default_factory=lambda: {"kd": Kd()})
    seeds: tuple[int, ...] = (0, 1)
    tags: list[str] = field(default_factory=list)
    limit: int | Literal["all"] = "all"
    extra: Training | None = None
    note: str | None = None
    answer: Literal["yes", "no"] = "yes"


def given(*words: str, document: dict[str, Any] | None = None) -> Recipe:
    base = {"teacher": "t"} if document is None else document
    return structure(Recipe, base, split_words(words)[1])


def test_overrides_set_values_and_flags() -> None:
    recipe = given(
        *["--training.steps", "20", "--training.learning-rate=1e-5", "--training.use-cache"],
        *["--objectives.kd.no-cached", "--seeds", "[3, 4]", "--limit=-5", "--out", "2024"],
        *["--objectives.bd.objective", "bellman_distill", "--objectives.bd.alpha", "10"],
        *["--answer", "no", "--training.schedule.warmup-steps", "2"],
    )
    assert recipe == Recipe(
        "t",
        out=Path("2024"),
        training=Training(1e-5, 20, use_cache=True, schedule=Cosine(warmup_steps=2)),
        objectives={"kd": Kd(False), "bd": Distil(10.0)},
        seeds=(3, 4),
        limit=-5,
        answer="no",
    )


def test_an_absent_section_starts_from_the_default_of_its_field() -> None:
    assert given("--training.learning-rate", "1").training == Training(1.0, steps=7)
    document = {"teacher": "t", "training": None, "objectives": {"my-bd": {"objective": "kd"}}}
    recipe = given("--training.learning-rate=1", "--objectives.my_bd.cached=no", document=document)
    assert recipe.training == Training(1.0)
    assert recipe.objectives == {"my-bd": Kd(False)}
    assert given("--extra.steps", "1").extra == Training(steps=1)


def test_overrides_leave_the_document_alone_and_the_last_one_counts() -> None:
    document = {"teacher": "t", "training": {"steps": 1}}
    recipe = given("--training.steps=2", "--training.steps=3", document=document)
    assert recipe == Recipe("t", training=Training(steps=3))
    assert document == {"teacher": "t", "training": {"steps": 1}}
    assert given("--teacher", "x", document={}) == Recipe("x")
    assert structure(Recipe, None, [Option("teacher", "x")]) == Recipe("x")
    assert given("--training", "{steps: 4}", "--training.use-cache").training == Training(
        steps=4, use_cache=True
    )


@pytest.mark.parametrize(
    "text", ["7", "say # hi", "# hi", "a: b", "a: b: c", "[a, b]", "2024-05-01", "yes", "null", ""]
)
def test_text_fields_take_text_as_it_stands(text: str) -> None:
    assert given("--teacher", text, "--training.steps=3") == Recipe(
        text, training=Training(steps=3)
    )


def test_quotes_of_yaml_are_no_part_of_a_text() -> None:
    assert given("--teacher", '"7"').teacher == "7"


def test_a_comment_is_text_and_not_null() -> None:
    document = {"teacher": "t", "note": "old"}
    assert given("--note", "# hi", document=document).note == "# hi"
    assert given("--note", "null", document=document).note is None


def test_null_a_whole_section_and_a_whole_entry_can_be_given() -> None:
    document = {"teacher": "t", "extra": {"steps": 3}}
    assert given("--extra", "null", document=document).extra is None
    assert given("--training", "{steps: 4}").training == Training(steps=4)
    assert given("--objectives.bellman-distill", "{alpha: 3}").objectives["kd"] == Kd()
    recipe = given("--objectives.bellman_distill", "{alpha: 3}")
    assert recipe.objectives["bellman_distill"] == Distil(3.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--training.stpes", "2"], "--training.stpes: unknown key; did you mean 'steps'?"),
        (["--training.steps", "x"], "--training.steps: expected an integer, found the string 'x'"),
        (
            ["--training.steps"],
            "--training.steps: expected an integer after it, found nothing",
        ),
        (
            ["--training.no-steps"],
            "--training.steps: expected an integer after it, found nothing",
        ),
        (["--training.no-use-cache", "1"], "--training.no_use_cache: unknown key; did you mean"),
        (["--training.use-cache", "1"], "expected true or false, found the integer 1"),
        (["--training"], "--training: expected a section (learning_rate, steps,"),
        (["--teacher"], "--teacher: expected a string after it, found nothing"),
        (["--trainin.steps", "2"], "--trainin: unknown key; did you mean 'training'?"),
        (["--trainin"], "--trainin: unknown key; did you mean 'training'? (keys"),
        (["--teacher.x=2"], "--teacher.x: expected a section at teacher, found the string 't'"),
        (["--seeds.0=2"], "--seeds.0: expected a section at seeds, found a list of 2"),
        (["--limit.x=2"], "--limit.x: expected a section at limit, found the string 'all'"),
        (["--training", "{stpes: 1}"], "--training.stpes: unknown key; did you mean 'steps'?"),
        (["--tags", "[a, 3]"], "--tags[1]: expected a string, found the integer 3; put it in quot"),
        (
            ["--objectives.kd.objective=sft"],
            "--objectives.kd.objective: expected bellman_distill | ",
        ),
        (["--objectives.x.objective=kd", "--objectives.x.alhpa=2"], "--objectives.x.alhpa: unkno"),
        (
            ["--objectives.kdd.cached=no"],
            "objectives.kdd.objective: missing; expected bellman_dist",
        ),
        (["--tags", "[a, {b: 1, b: 2}]"], "--tags: expected a list (each a string), found the"),
    ],
)
def test_wrong_overrides(arguments: list[str], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        given(*arguments, document={"teacher": "t", "seeds": [1, 2]})
    assert text in str(caught.value)


def test_wrong_overrides_and_a_wrong_document_come_in_one_error() -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml has 4 problems:") as caught:
        given("--a=1", "--b=2", "--training.steps=x", document={"teacher": "t", "tags": 3})
    found = str(caught.value)
    assert all(f"- {where}: " in found for where in ("--a", "--b", "--training.steps", "tags"))


def test_all_values_inside_what_is_no_section_come_in_one_error() -> None:
    with pytest.raises(RecipeError, match="command line has 2 problems:") as caught:
        given("--training.steps=1", "--extra.steps=1", document={"training": 3, "extra": "x"})
    assert "expected a section at training, found the integer 3" in str(caught.value)


def test_words_are_split_into_those_alone_and_options() -> None:
    words = [
        "a.yaml",
        "--out",
        "x",
        "b.yaml",
        "--x.y=-1",
        "--x.flag",
        "--x.list=[a=1]",
        "--z",
        "-5",
    ]
    alone, options = split_words(words)
    assert alone == ["a.yaml", "b.yaml"]
    assert options == [
        ("out", "x"),
        ("x.y", "-1"),
        ("x.flag", None),
        ("x.list", "[a=1]"),
        ("z", "-5"),
    ]


def test_load_yaml_reads_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: &b {x: 1, y: 2}\nother: {<<: *b, x: 3}\nlr: 5e-6\n")
    assert load_yaml(path) == {
        "base": {"x": 1, "y": 2},
        "other": {"x": 3, "y": 2},
        "lr": "5e-6",
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "found an empty file"),
        (b"# only a comment\n", "found an empty file"),
        (b"- a\n", "found a list of 1"),
        (b"a: 1\nb: [1, 2\nc: 3\n", r"line 3, column 2: expected YAML, but while parsing"),
        (b"a:\n  x: 1\n  y: 2\n  x: 3\n", r"line 4, column 3: .*'x' is given twice, first in line"),
        (b"a: 1\n---\nb: 2\n", "line 2, column 1"),
        (b"a: \x00\n", "expected YAML, but "),
        (b"a: \xff\n", "expected a UTF-8 YAML file, found byte 0xff at 3; convert it"),
        (b"a: !!python/object:os.system {}\n", "line 1, column 4"),
    ],
)
def test_load_yaml_refuses_with_a_place(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=text) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_load_yaml_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("a: 1\n")
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(RecipeError, match=r"found none; did you mean 'demo\.yaml'\?"):
        load_yaml(tmp_path / "dmeo.yaml")
    with pytest.raises(RecipeError, match=r"the folder .* does not exist either"):
        load_yaml(tmp_path / "nowhere" / "demo.yaml")
    with pytest.raises(RecipeError, match="expected a UTF-8 YAML file"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("010", 8), ("1:30", 90), ("-017", -15)])
def test_numbers_that_yaml_takes_for_others_are_refused(text: str, value: int, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"steps: {text}")
    with pytest.raises(RecipeError, match=f"line 1, column 8: .* {text} is {value} in YAML"):
        load_yaml(path)
    path.write_text(f"steps: '{text}'\nzero: 0\nten: 10\nshare: 0.5")
    assert load_yaml(path) == {"steps": text, "zero": 0, "ten": 10, "share": 0.5}
