"""The README's Python runs as it stands, on a tiny teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tdistill.models import language_model as lm
from tiny import tiny_lm

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def tiny_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    lm.save(tiny_lm("llama", num_hidden_layers=12), tmp_path / "models" / "teacher")
    prompts = {"train": "abcdefgh", "valid": "ij", "test": "klm"}
    for split, letters in prompts.items():
        rows = [{"prompt": f"{a} b", "completion": f" {a} c"} for a in letters]
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_snippet_distils(tiny_project: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    # Only sizes differ from what a reader would run.
    short = re.sub(r"\b(steps|batch_size|max_new_tokens)=\d+", r"\1=4", code[1])
    names: dict[str, Any] = {}
    exec(compile(short, "README.md", "exec"), names)
    assert {score.model for score in names["result"].scores} == {
        "teacher",
        "start",
        "seqkd",
        "bellman_distill",
    }
    assert (tiny_project / "run" / "report.html").exists()
    assert (tiny_project / "run" / "student" / "config.json").exists()
