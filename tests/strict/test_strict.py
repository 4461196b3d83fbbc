from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.errors import InvalidValueError, RecipeError
from tdistill.strict import describe, dump, structure


@dataclass(frozen=True)
class Distil:
    name: ClassVar[str] = "bellman_distill"

    alpha: float = 0.1  # weight of the chi-square term
    clip: float | None = None
    phi: Literal["chi_square", "identity"] = "chi_square"

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise InvalidValueError(f"alpha: expected 0 or more, found {self.alpha}")


@dataclass(frozen=True)
class Kd:
    name: ClassVar[str] = "kd"

    cached: bool = True
    """Read the teacher
    from the cache."""


@dataclass(frozen=True)
class Constant:
    name: ClassVar[str] = "constant"

    rate: float


@dataclass(frozen=True)
class Cosine:
    name: ClassVar[str] = "cosine"

    rate: float = 1.0
    warmup_steps: int = 100


@dataclass(frozen=True)
class Training:
    learning_rate: float = 5e-6
    # not the help of the next field
    steps: int = 10
    use_cache: bool = False
    betas: tuple[float, ...] = field(
        default=(0.9, 0.95),
    )  # of AdamW
    schedule: Constant | Cosine = field(default_factory=Cosine)


@dataclass(frozen=True)
class Decoding:
    name: str  # a field, so this class has no tag
    temperature: float = 1.0


@dataclass(frozen=True)
class Recipe:
    teacher: str
    out: Path = Path("runs/x")
    training: Training = field(default_factory=lambda: Training(steps=7))
    objectives: dict[str, Distil | Kd] = field(default_factory=lambda: {"kd": Kd()})
    seeds: tuple[int, ...] = (0, 1)
    tags: list[str] = field(default_factory=list)
    decodings: tuple[Decoding, ...] = ()
    limit: int | Literal["all"] = "all"
    extra: Training | None = None
    answer: Literal["yes", "no"] = "yes"
    either: float | int = 0


def problems(mapping: Any, cls: type = Recipe) -> list[str]:
    """Return the lines of the error that loading raises."""
    with pytest.raises(RecipeError) as caught:
        structure(cls, mapping, where="r.yaml")
    head, *lines = str(caught.value).split("\n  - ")
    if lines:
        assert head == f"r.yaml has {len(lines)} problems:"
        return lines
    assert head.startswith("r.yaml: ")
    return [head.removeprefix("r.yaml: ")]


def test_defaults_and_every_type() -> None:
    assert structure(Recipe, {"teacher": "t"}) == Recipe("t")
    document = {
        "teacher": "t",
        "out": "a/b",
        "training": {"learning_rate": "5e-6", "steps": 3, "betas": [0, 0.5]},
        "objectives": {
            "bellman_distill": {},
            "bd10": {"objective": "bellman_distill", "alpha": 10},
            "kd": None,
        },
        "seeds": [4, 5, 6],
        "tags": ["x"],
        "decodings": [{"name": "greedy", "temperature": 0}],
        "limit": 20,
        "extra": {"schedule": {"objective": "constant", "rate": 2}},
    }
    assert structure(Recipe, document) == Recipe(
        teacher="t",
        out=Path("a/b"),
        training=Training(learning_rate=5e-6, steps=3, betas=(0.0, 0.5)),
        objectives={"bellman_distill": Distil(), "bd10": Distil(alpha=10.0), "kd": Kd()},
        seeds=(4, 5, 6),
        tags=["x"],
        decodings=(Decoding("greedy", 0.0),),
        limit=20,
        extra=Training(schedule=Constant(2.0)),
    )


def test_ints_become_floats_but_stay_ints_where_both_are_allowed() -> None:
    recipe = structure(Recipe, {"teacher": "t", "training": {"learning_rate": 1}, "either": 3})
    assert type(recipe.training.learning_rate) is float
    assert type(recipe.either) is int


@pytest.mark.parametrize("text", ["5e-6", "1E3", "-2.5e+3", ".5e2", "+1.e0"])
def test_exponents_that_yaml_reads_as_strings_are_floats(text: str) -> None:
    recipe = structure(Recipe, {"teacher": "t", "training": {"learning_rate": text}})
    assert recipe.training.learning_rate == float(text)


@pytest.mark.parametrize("value", ["0.5", "1", "e5", "1e5x", "nan", True, None, math.nan, 10**400])
def test_other_values_are_not_floats(value: Any) -> None:
    (line,) = problems({"teacher": "t", "training": {"learning_rate": value}})
    assert line.startswith("training.learning_rate: expected a number, found ")


@pytest.mark.parametrize(
    ("field_name", "value", "line"),
    [
        ("steps", 2.0, "training.steps: expected an integer, found the number 2.0"),
        ("steps", True, "training.steps: expected an integer, found true"),
        ("steps", "2", "training.steps: expected an integer, found the string '2'"),
        ("use_cache", 1, "training.use_cache: expected true or false, found the integer 1"),
        ("use_cache", "yes", "training.use_cache: expected true or false, found the string 'yes'"),
        ("betas", 0.5, "training.betas: expected a list (each a number), found the number 0.5"),
        ("betas", [0.5, "x"], "training.betas[1]: expected a number, found the string 'x'"),
        ("schedule", 3, "training.schedule: expected a section (constant | cosine), found"),
    ],
)
def test_wrong_types_name_path_expected_and_found(field_name: str, value: Any, line: str) -> None:
    (found,) = problems({"teacher": "t", "training": {field_name: value}})
    assert line in found


def test_text_that_yaml_reads_as_something_else_is_explained() -> None:
    lines = problems({"teacher": 12, "out": "", "answer": False, "tags": [None]})
    assert lines == [
        "teacher: expected a string, found the integer 12; put it in quotes if it is meant as text",
        "out: expected a path, found the string ''",
        "tags[0]: expected a string, found null",
        "answer: expected yes | no, found false; put it in quotes if it is meant as text",
    ]


def test_literals_give_the_nearest_choice_and_do_not_confuse_one_with_true() -> None:
    @dataclass(frozen=True)
    class Level:
        level: Literal[1, 2]

    objectives = {"bellman_distill": {"phi": "chisquare"}}
    (line,) = problems({"teacher": "t", "objectives": objectives})
    assert line == (
        "objectives.bellman_distill.phi: expected chi_square | identity, found the string "
        "'chisquare'; did you mean 'chi_square'?"
    )
    assert structure(Level, {"level": 1}) == Level(1)
    assert problems({"level": True}, Level)[0].startswith("level: expected 1 | 2, found true")


def test_all_problems_come_in_one_error() -> None:
    lines = problems(
        {
            "training": {"stpes": 3, "learning_rate": [], "schedule": {"objective": "constant"}},
            "objectives": {"bd": {}, "b": {"objective": "kdd"}, "kd": {"cached": 1}, 3: {}},
            "seeds": [0, "1"],
            "decodings": {"name": "x"},
        }
    )
    assert [line.split(": ")[0] for line in lines] == [
        "teacher",
        "training.stpes",
        "training.learning_rate",
        "training.schedule.rate",
        "objectives.bd.objective",
        "objectives.b.objective",
        "objectives.kd.cached",
        "objectives.3",
        "seeds[1]",
        "decodings",
    ]
    assert "unknown key; did you mean 'steps'? (keys here: learning_rate, steps," in lines[1]
    assert lines[0] == "teacher: missing; expected a string"
    assert lines[5].endswith("found the string 'kdd'; did you mean 'kd'?")


def test_a_union_needs_its_tag_outside_a_dictionary() -> None:
    (line,) = problems({"teacher": "t", "training": {"schedule": {"rate": 1}}})
    assert line == "training.schedule.objective: missing; expected constant | cosine"


def test_a_tag_wins_over_the_name_of_the_entry() -> None:
    recipe = structure(
        Recipe, {"teacher": "t", "objectives": {"kd": {"objective": "bellman_distill"}}}
    )
    assert recipe.objectives == {"kd": Distil()}


def test_a_single_class_accepts_its_own_tag_only() -> None:
    assert structure(Cosine, {"objective": "cosine", "rate": 2}) == Cosine(2.0)
    (line,) = problems({"objective": "constant"}, Cosine)
    assert line.startswith("objective: expected cosine, found the string 'constant'")


def test_checks_of_a_class_get_its_path() -> None:
    lines = problems({"teacher": "t", "objectives": {"bellman_distill": {"alpha": -1}}})
    assert lines == ["objectives.bellman_distill: alpha: expected 0 or more, found -1.0"]
    assert problems({"alpha": -1}, Distil) == ["alpha: expected 0 or more, found -1.0"]


@pytest.mark.parametrize("document", [[1], "text", 3])
def test_the_document_must_be_a_section(document: Any) -> None:
    (line,) = problems(document)
    assert line.startswith("expected a section (teacher, out,")


def test_classes_that_cannot_be_loaded_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="is not a type of a recipe"):
        structure(WithSet, {"values": []})
    with pytest.raises(InvalidValueError, match="is not a type of a recipe"):
        structure(WithPair, {"pair": [1.0, 2.0]})
    with pytest.raises(InvalidValueError, match="different `name: ClassVar"):
        structure(WithUntaggedUnion, {"value": {}})
    with pytest.raises(InvalidValueError, match="cannot be resolved"):
        structure(WithUnknownName, {})


@dataclass
class WithSet:
    values: set[int]


@dataclass
class WithPair:
    pair: tuple[float, float]


@dataclass
class WithUntaggedUnion:
    value: Training | Decoding


@dataclass
class WithUnknownName:
    value: NotDefinedAnywhere  # pyright: ignore


def test_dump_is_plain_and_loads_to_the_same() -> None:
    recipe = Recipe(
        "t",
        objectives={"kd": Kd(False), "b": Distil(clip=1e300)},
        decodings=(Decoding("x"),),
        extra=Training(schedule=Constant(1e-6)),
    )
    plain = dump(recipe)
    assert plain["out"] == "runs/x"
    assert plain["seeds"] == [0, 1]
    assert plain["objectives"]["b"]["objective"] == "bellman_distill"
    assert plain["extra"]["schedule"] == {"objective": "constant", "rate": 1e-6}
    assert plain["decodings"] == [{"name": "x", "temperature": 1.0}]
    assert not any(is_dataclass(value) for value in plain.values())
    assert structure(Recipe, plain) == recipe
    assert structure(Recipe, yaml.safe_load(yaml.safe_dump(plain))) == recipe
    for value in ({}, Recipe, WithSet({1})):
        with pytest.raises(InvalidValueError, match="dump: expected a"):
            dump(value)


objectives = st.one_of(
    st.builds(
        Distil,
        alpha=st.floats(0, 1e6),
        clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        phi=st.sampled_from(["chi_square", "identity"]),
    ),
    st.builds(Kd, cached=st.booleans()),
)
trainings = st.builds(
    Training,
    learning_rate=st.floats(allow_nan=False, allow_infinity=False),
    steps=st.integers(),
    schedule=st.builds(Constant, rate=st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(Cosine),
)
recipes = st.builds(
    Recipe,
    teacher=st.text(),
    out=st.sampled_from([Path("a"), Path("/b/c")]),
    training=trainings,
    objectives=st.dictionaries(st.text(), objectives, max_size=3),
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
    tags=st.lists(st.text(), max_size=2),
    limit=st.just("all") | st.integers(),
    extra=st.none() | trainings,
    answer=st.sampled_from(["yes", "no"]),
    either=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(recipes)
@settings(max_examples=100, deadline=None)
def test_every_recipe_survives_dump_yaml_and_load(recipe: Recipe) -> None:
    text = yaml.safe_dump(dump(recipe))
    assert structure(Recipe, yaml.safe_load(text)) == recipe


def test_describe_lists_every_key_with_help() -> None:
    lines = {line.path: line[1:] for line in describe(Recipe)}
    assert lines["teacher"] == ("a string", "required", "")
    assert lines["training.steps"] == ("an integer", "7", "")
    assert lines["training.betas"][1:] == ("[0.9, 0.95]", "of AdamW")
    assert lines["objectives"][1] == "{kd}"
    weight = "weight of the chi-square term"
    assert lines["objectives.bellman_distill.alpha"] == ("a number", "0.1", weight)
    assert lines["objectives.kd.cached"][2] == "Read the teacher from the cache."
    assert lines["training.schedule"][:2] == ("a section (constant | cosine)", "cosine")
    assert lines["training.schedule.warmup_steps"][2] == ""
    assert lines["limit"][:2] == ("an integer or all", "all")
    assert lines["extra"][1] == "null"
    assert lines["extra.steps"][1] == "10"


def test_describe_works_without_source() -> None:
    made = make_dataclass("Made", [("steps", int, 3)])
    assert list(describe(made)) == [("steps", "an integer", "3", "")]


def test_describe_lists_what_named_classes_share_once() -> None:
    @dataclass(frozen=True)
    class Base:
        rate: float = 1.0  # of change
        size: int = 3  # in all

    @dataclass(frozen=True)
    class First(Base):
        name: ClassVar[str] = "first"
        own: bool = False  # only here

    @dataclass(frozen=True)
    class Second(Base):
        name: ClassVar[str] = "second"
        rate: float = 2.0

    @dataclass(frozen=True)
    class Whole:
        parts: dict[str, First | Second] = field(default_factory=dict)

    Whole.__annotations__["parts"] = dict[str, First | Second]
    found = [(line.path, line.default_text, line.help) for line in describe(Whole)][1:]
    assert found == [
        ("parts.NAME.rate", "1.0", "of change"),
        ("parts.NAME.size", "3", "in all"),
        ("parts.first.own", "false", "only here"),
        ("parts.second.rate", "2.0", "of change"),
    ]
