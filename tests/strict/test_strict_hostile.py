"""Documents that nobody would write by hand end in one line, soon, and without filling memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.errors import InvalidValueError, RecipeError
from tdistill.recipe import read_recipe
from tdistill.strict import load_yaml
from tdistill.strict.yaml_text import parse

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100,000 values once its aliases are written out"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "expected YAML of a few levels, found hundreds"),
        ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "expected YAML of a few levels"),
        ("steps: " + "9" * 300_000, "a number of 300,000 characters"),
        ("steps: 0x" + "f" * 300_000, "a number of 300,002 characters"),
        ("steps: 1" + ":10" * 100_000, "a number of 300,001 characters"),
        ("steps: 0." + "1" * 300_000, "a number of 300,002 characters"),
        ("text: " + "x" * (1 << 20), "expected a recipe of at most 1 MiB"),
        ("when: 2024-13-45", "expected YAML, but month must be in 1..12"),
    ],
    ids=lambda text: text[:12],
)
def test_bombs_are_refused_in_one_line_within_a_second(text: str, said: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_yaml(path)
    assert time.process_time() - started < 1.0
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_aliases_that_a_person_would_write_are_read(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("phase: &phase {steps: 3}\nstart: *phase\ntraining:\n  <<: *phase\n  seed: 1\n")
    document = load_yaml(path)
    assert document["training"] == {"steps": 3, "seed": 1}
    assert document["start"] == {"steps": 3}


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 5_000, "9" * 10_000, "2024-13-45", "*x"])
def test_such_texts_of_the_command_line_are_texts(text: str):
    assert parse(text) == text


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch x']", "!!python/name:os.system", "!mine {}"]
)
def test_tags_make_no_objects(tag: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"teacher: {tag}")
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load_yaml(path)


@pytest.mark.parametrize(
    "value", [".inf", ".nan", "-.inf", "1e400", "-1", "0", "[]", "{}", "null", "true", "'1'", "x"]
)
@pytest.mark.parametrize("field", ["learning_rate", "steps", "max_grad_norm"])
def test_numbers_that_are_none_are_refused_by_name(field: str, value: str, tmp_path: Path):
    if (field, value) in (("max_grad_norm", "0"), ("max_grad_norm", "-1")):
        pytest.skip("0 and below turn clipping off, as in the Trainer")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"teacher: {{path: t}}\nstudent: {{layers: 1}}\ntraining: {{{field}: {value}}}")
    with pytest.raises(InvalidValueError, match=field):
        read_recipe(path)


BROKEN = """
import dataclasses

{line}
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise KeyError('x')", "line 4 of .* raises KeyError: 'x'"),
        ("1 / 0", "line 4 of .* raises ZeroDivisionError"),
        ("def broken(:", "line 4 of .* raises SyntaxError"),
        ("import no_such_package_x", "line 4 of .* raises ModuleNotFoundError"),
        ("raise SystemExit(3)", "line 4 of .* raises SystemExit: 3"),
    ],
)
def test_an_objective_file_that_raises_is_named_with_its_line(line: str, said: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(BROKEN.format(line=line))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "teacher: {path: t}\nstudent: {layers: 1}\ndistilled: mine\n"
        "objectives: {mine: {objective: 'mine.py:Mine'}}"
    )
    with pytest.raises(InvalidValueError, match=said) as caught:
        read_recipe(path)
    assert "Traceback" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
SECTIONS = ["teacher", "student", "data", "rollouts", "training", "objectives", "evaluation", "x"]


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=5))
def test_any_document_is_a_recipe_or_an_error_that_says_why(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]
):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidValueError) as caught:
        read_recipe(path)
    assert "expected" in str(caught.value)


@settings(max_examples=300)
@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_file_is_a_mapping_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
    try:
        assert isinstance(load_yaml(path), dict)
    except RecipeError as error:
        assert str(path) in str(error)
