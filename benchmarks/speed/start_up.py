"""The small bars: top-p selection against a sort, and how fast the command starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.measure import Spread, paired, ratio, spread_of, timed
from benchmarks.speed.settings import Setting

ROWS, VOCABULARY, TOP_P = 1024, 151_936, 0.8
HELP = "from tdistill.cli import main; main(['--help'])"
IMPORT = "import tdistill"
COUNT_TORCH = "; import sys; print('torch' in sys.modules)"


def run(setting: Setting) -> Report:
    """Selection and start-up."""
    report = Report()
    _selection(setting, report)
    _start_up(setting, report)
    return report


def _selection(setting: Setting, report: Report) -> None:
    import torch

    from tdistill.core import top_p_sets

    torch.set_num_threads(setting.threads)
    vocabulary = int(VOCABULARY * setting.form.vocabulary)
    table: list[dict[str, Any]] = []
    # Peaked as a language model's: log p falls with the log of the rank. Flat: hardly at all.
    for name, (least, most) in {"peaked": (1.1, 2.5), "flat": (0.1, 0.3)}.items():
        generator = torch.Generator().manual_seed(0)
        slope = least + (most - least) * torch.rand(ROWS, 1, generator=generator)
        ranks = torch.rand(ROWS, vocabulary, generator=generator).argsort(-1) + 1
        log_probs = (-slope * ranks.log()).log_softmax(-1)
        del ranks
        sizes = top_p_sets(log_probs, TOP_P).sizes.float()
        methods = {
            "selection": timed(lambda p=log_probs: top_p_sets(p, TOP_P)),
            "sort": timed(lambda p=log_probs: p.sort(-1, descending=True)),
        }
        barred = name == "peaked"
        rounds = setting.form.slow if barred else 1
        seconds = paired(methods, rounds, warm_up=int(barred), note=f"selection, {name}")
        share = ratio(seconds["selection"], seconds["sort"])
        size = f"mean {float(sizes.mean()):.0f}, median {float(sizes.median()):.0f} members"
        table.append(
            {"rows": name, "sets": size, "share_of_sort": share.json()}
            | {f"{n} seconds": spread_of(s).json() for n, s in seconds.items()}
        )
        if barred:
            what = f"top-p sets (p = {TOP_P}) of [{ROWS}, {vocabulary}] float32, Zipf rows, {size}"
            report.add("selection.against_sort", share, what)
    report.details["selection"] = table


def _start_up(setting: Setting, report: Report) -> None:
    command = Path(sys.executable).parent / "tdistill"
    words = [str(command)] if command.exists() else [sys.executable, "-m", "tdistill"]
    methods = {
        "help": timed(lambda: _run([*words, "--help"])),
        "import": timed(lambda: _run([sys.executable, "-c", IMPORT])),
        "python alone": timed(lambda: _run([sys.executable, "-c", "pass"])),
    }
    seconds = paired(methods, setting.form.repetitions, note="start-up")
    report.add("start_up.help", spread_of(seconds["help"]), "tdistill --help, a process each time")
    text = "python -c 'import tdistill', a process each time, the interpreter's start included"
    report.add("start_up.import", spread_of(seconds["import"]), text)
    loads = sum(_run([sys.executable, "-c", c + COUNT_TORCH]) == "True" for c in (HELP, IMPORT))
    text = "sys.modules after tdistill --help and after import tdistill"
    report.add("start_up.torch", Spread(loads, loads, loads), text)
    report.details["start_up"] = {n: spread_of(s).json() for n, s in seconds.items()}


def _run(words: list[str]) -> str:
    """The last line that a command prints."""
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return (done.stdout.splitlines() or [""])[-1]
