from __future__ import annotations

import subprocess
import sys

import pytest

from tdistill.data import DataConfig
from tdistill.errors import RecipeError


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("format", "alpaca", "data.format: expected one of auto, prompt-completion"),
        ("template", "jinja", "data.template: expected one of auto, chat"),
        (
            "limit_train",
            0,
            "data.limit_train: expected a whole number of at least 1; found the integer 0",
        ),
        ("limit_test", 2.5, "data.limit_test"),
        (
            "max_prompt_tokens",
            None,
            "data.max_prompt_tokens: expected a whole number of at least 1; found null",
        ),
        ("max_response_tokens", True, "data.max_response_tokens"),
        ("trained_turns", "first", "data.trained_turns: expected one of last, all"),
        ("max_boundary_failures", 2, "data.max_boundary_failures: expected a share"),
        ("test_share", 1.0, "data.valid_share, data.test_share: expected less than 1"),
        ("train", "auto", "data.train: expected a source"),
        ("clock", "tomorrow", "data.clock: expected a date"),
        ("template_kwargs", {"messages": "a"}, "data.template_kwargs: expected variables"),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_name(field, value, found):
    with pytest.raises(RecipeError) as caught:
        DataConfig(**{field: value})
    assert found in str(caught.value)


def test_no_limit_is_null():
    assert DataConfig(limit_valid=None).limit_valid is None


def test_importing_the_data_layer_loads_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    code = f"import sys, tdistill.data; sys.exit(any(name in sys.modules for name in {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
