"""What a student gives up, in the result of a run that keeps critics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import read_json, write_world
from tdistill import cli
from tdistill.training.critic import CRITIC_FILE

pytestmark = pytest.mark.usefixtures("plain_pages")


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kept_critic_tells_what_was_given_up(kept: bool, tmp_path: Path):
    recipe, out = write_world(tmp_path / "world"), tmp_path / "out"
    plain: dict[str, Any] = yaml.safe_load(recipe.read_text())
    plain |= {
        "objectives": {"kd": {}, "tilted": {"objective": "value_tilted_kd"}},
        "distilled": "kd",
    }
    plain["training"] |= {"keep_critic": kept}
    plain["evaluation"] |= {"decodings": {"greedy": {"greedy": True}}, "tuned_models": []}
    recipe.write_text(yaml.safe_dump(plain, sort_keys=False))
    assert cli.main(["run", str(recipe), "--out", str(out)]) == 0
    files = {path.parent.name for path in out.rglob(CRITIC_FILE)}
    assert files == ({"tilted"} if kept else set())
    data = tmp_path / "responses.jsonl"
    data.write_text('{"prompt": "a b c", "completion": "d e"}')
    words = [
        "--run",
        str(out),
        "--label",
        "tilted",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "r"),
    ]
    assert cli.main(["reward", *words]) == 0
    line = json.loads((tmp_path / "r/rewards.jsonl").read_text())
    assert ("cost_to_go" in line) == kept
    assert not kept or len(line["cost_to_go"]) == len(line["tokens"])
    traces = read_json(out / "metrics.json")["value_traces"]
    page = (out / "report.html").read_text()
    assert bool(traces) == kept
    assert ('id="values"' in page) == any(trace["steps"] for trace in traces) == kept
    for trace in traces:
        assert trace["model"] == "tilted"
        for step in trace["steps"]:
            assert step["spared"] > 1e-3
            shown = [m["token"] for m in step["members"]]
            assert len(shown) == 6 or trace["tokens"][step["step"]] in shown
            for who in ("teacher", "student"):
                assert sum(m[who] for m in step["members"]) <= 1.0 + 1e-4
            mean = sum(m["teacher"] * m["cost"] for m in step["members"])
            whole = sum(m["teacher"] for m in step["members"]) > 1.0 - 1e-4
            assert not whole or mean == pytest.approx(0.0, abs=1e-5)
