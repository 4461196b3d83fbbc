"""The commands of docs/scaling.md, in the form that two processes of a CPU can run."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import pytest
from fsdp_on_cpu import ENVIRONMENT

from launching import ROOT, Launch
from pipeline import read_json, write_world

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "scaling.md"
LIFTED = Path(__file__).parent / "fsdp_on_cpu.py"
COMMANDS = re.findall(r"```sh\n(.+?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launches(command: str, recipe: Path, out: Path) -> list[Launch]:
    """What the machines of a command start: its own words, with two processes in all."""
    words = shlex.split(command)
    words = [str(recipe) if word == "recipe.yaml" else word for word in words]
    words[words.index("--out") + 1] = str(out)
    launcher, rest = words[0], words[words.index("run") :]
    if launcher == "tdistill":
        return [Launch(["-m", "tdistill", *rest], None)]
    if launcher == "accelerate":  # which on a CPU starts one process and no FSDP
        assert {"--use_fsdp", "--fsdp_version", "TRANSFORMER_BASED_WRAP"} <= set(words)
        return [Launch([LIFTED, *rest], **ENVIRONMENT)]
    options = words[1 : words.index("-m")]
    machines = int(options[options.index("--nnodes") + 1]) if "--nnodes" in options else 1
    options[options.index("--nproc_per_node") + 1] = str(2 // machines)
    options = [word.replace("HOST:29500", f"127.0.0.1:{PORT}") for word in options]
    return [Launch(["-m", "tdistill", *rest], options) for _ in range(machines)]


PORT = free_port()


def test_the_page_has_the_commands_that_are_asked_for() -> None:
    assert len(COMMANDS) == 4
    for command, wanted in zip(
        COMMANDS, ["tdistill run", "nproc_per_node 8", "nnodes 2", "use_fsdp"], strict=True
    ):
        assert wanted in command


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_does_the_whole_run(number: int, tmp_path: Path) -> None:
    recipe = write_world(tmp_path / "world", objectives={"seqkd": {}, "kd": {}}, distilled="kd")
    running = launches(COMMANDS[number], recipe, tmp_path / "out")
    ended = [launch.finish() for launch in running]
    assert [code for code, _ in ended] == [0] * len(running), ended
    assert sum(said.count("report:  ") for _, said in ended) == 1
    assert read_json(tmp_path / "out" / "metrics.json")["distilled"] == "kd"
