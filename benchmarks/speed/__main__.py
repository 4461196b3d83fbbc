"""Run the benchmarks: ``python -m benchmarks.speed [--only NAME ...] [--full] [--plots]``.

Each benchmark runs in a process of its own and leaves its raw numbers; one that has them already
is not run again (``--fresh`` runs it). The end is results.json, a page, and figures for the docs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from benchmarks.speed import bars, document
from benchmarks.speed.protocol import ROOT
from benchmarks.speed.settings import DEFAULT_PEERS, DEFAULT_WORK, FORMS, Setting

NAMES = ("training_step", "scaling", "loss_alone", "rollouts", "cache_bytes", "limit", "start_up")
HERE = ROOT / "benchmarks"


def main() -> int:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    setting = Setting(
        options.form, options.work, options.peers, options.distillkit, options.threads
    )
    if options.one:
        report = importlib.import_module(f"benchmarks.speed.{options.one}").run(setting)
        _raw(setting, options.one).write_text(json.dumps(asdict(report), indent=1))
        return 0
    failed = [] if options.plots else [n for n in options.only if not _measure(n, setting, options)]
    write(setting, options.out)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    checkout = os.environ.get("DISTILLKIT")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--form", choices=FORMS, default="short")
    parser.add_argument("--full", dest="form", action="store_const", const="full")
    parser.add_argument("--fresh", action="store_true", help="run again what was run before")
    parser.add_argument("--plots", action="store_true", help="only write results and page again")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--peers", type=Path, default=DEFAULT_PEERS, help="their interpreter")
    parser.add_argument(
        "--distillkit", type=Path, default=Path(checkout) if checkout else None, help="a checkout"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="for results.json and the page")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.plots or options.peers.exists()):
        parser.error(
            f"expected the peers' environment with its interpreter at {options.peers}, found none; "
            "`make bench` makes it, --peers names another"
        )
    return options


def _measure(name: str, setting: Setting, options: argparse.Namespace) -> bool:
    """Run one benchmark in its own process, unless it was run."""
    raw = _raw(setting, name)
    if raw.exists() and not options.fresh:
        print(f"{name}: was run before ({raw})", flush=True)
        return True
    raw.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name}:", flush=True)
    start = time.monotonic()
    words = ["--one", name, "--form", setting.name, "--work", str(setting.work)]
    words += ["--peers", str(setting.peers), "--threads", str(setting.threads)]
    words += ["--distillkit", str(setting.distillkit)] if setting.distillkit else []
    done = subprocess.run([sys.executable, "-m", "benchmarks.speed", *words], cwd=ROOT, check=False)
    print(f"{name}: {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return done.returncode == 0


def _raw(setting: Setting, name: str) -> Path:
    return setting.work / "raw" / f"{name}.{setting.name}.json"


def write(setting: Setting, out: Path) -> None:
    """results.json of all raw numbers that there are, the page and the figures."""
    from benchmarks.speed.page import write_page

    paths = {name: _raw(setting, name) for name in NAMES}
    raw: dict[str, Any] = {n: json.loads(p.read_text()) for n, p in paths.items() if p.exists()}
    reasons = yaml.safe_load((HERE / "reasons.yaml").read_text()) or {}
    found = bars.results(raw, reasons, form=setting.name)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    figures = ROOT / "docs" / "figures" if out == HERE else out
    write_page(found, out / "results.html", figures)
    if out == HERE:
        document.write(ROOT / "docs" / "performance.md", found)
    met = sum(entry["met"] for entry in found["entries"])
    print(f"{out / 'results.json'}: {met} of {len(found['entries'])} bars met")


if __name__ == "__main__":
    sys.exit(main())
