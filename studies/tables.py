"""Tables of a run for docs/results.md, also of one that was stopped: of what every seed judged.

    .venv/bin/python studies/tables.py runs/arithmetic --baseline kd --metric verified --seeds 5

First every decoding, then differences to the baseline with intervals over prompts and seeds, at a
level corrected for their number, then the same at equal entropy and at equal diversity.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from tdistill.evaluation.intervals import Sample
from tdistill.report.result import Estimate
from tdistill.report.sweeps import QUALITIES
from tdistill.run.estimates import estimate_of
from tdistill.run.folders import seed_folder
from tdistill.run.sweeps import matched_to

Records = dict[str, list[dict[str, Any]]]


def judged(run: Path, seeds: int) -> Records:
    """The record of every seed, of the models that have all of them."""
    files = sorted((run / "stages").glob("evaluate-*.json"))
    labels = [file.stem.removeprefix("evaluate-") for file in files]
    places = {
        x: [seed_folder(run, k) / f"stages/evaluate-{x}.json" for k in range(seeds)] for x in labels
    }
    return {
        label: [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for label, paths in places.items()
        if all(path.exists() for path in paths)
    }


def heading(names: list[str]) -> None:
    print("| " + " | ".join(["model", *names]) + " |\n|" + "---|" * (len(names) + 1))


def written(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return ""
    if estimate.low is None:
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def samples(records: list[dict[str, Any]], decoding: str, metric: str) -> list[Sample]:
    return [Sample.from_dict(r["per_prompt"][decoding][metric]) for r in records]


def decodings(of: Records, baseline: str, metric: str, names: list[str]) -> None:
    comparisons = len(names) * (len(of) - 1)
    print(f"\n{metric}; differences to {baseline}, corrected for {comparisons} comparisons\n")
    heading([text for d in names for text in (d, f"{d}, less {baseline}")])
    for label, records in of.items():
        cells = []
        for name in names:
            ours, theirs = samples(records, name, metric), samples(of[baseline], name, metric)
            apart = (
                estimate_of(ours, theirs, comparisons=comparisons) if label != baseline else None
            )
            cells += [written(estimate_of(ours)), written(apart)]
        print(f"| {label} | " + " | ".join(cells) + " |")


def matched(of: Records, baseline: str, metric: str, levels: int) -> None:
    rows = matched_to(baseline, of, levels=levels)
    for variable in dict.fromkeys(row.variable for row in rows):
        mine = [row for row in rows if row.variable == variable]
        at = list(dict.fromkeys(row.level for row in mine))
        print(
            f"\n{metric} less {baseline}, at equal {variable} ({mine[0].comparisons} comparisons)\n"
        )
        heading([f"{level:.3f}" for level in at])
        for label in dict.fromkeys(row.model for row in mine):
            cells = [written(row.metrics[metric]) for row in mine if row.model == label]
            print(f"| {label} | " + " | ".join(cells) + " |")


def curves(of: Records, metric: str) -> None:
    print(f"\n{metric} at each temperature, with the entropy of a token; means over seeds\n")
    temperatures = [point["temperature"] for point in next(iter(of.values()))[0]["sweep"]]
    heading([f"{temperature:g}" for temperature in temperatures])
    for label, records in of.items():
        cells = []
        for k in range(len(temperatures)):
            found = [
                [Sample.from_dict(r["sweep"][k]["per_prompt"][n]).mean for r in records]
                for n in (metric, "entropy")
            ]
            cells.append(" at ".join(f"{fmean(values):.3f}" for values in found))
        print(f"| {label} | " + " | ".join(cells) + " |")


def seconds(run: Path, labels: Records, seeds: int) -> None:
    print("\nseconds of training, mean over seeds\n")
    for label in labels:
        files = [seed_folder(run, k) / f"stages/{label}.json" for k in range(seeds)]
        print(f"{label}: {fmean(json.loads(f.read_text())['seconds'] for f in files):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--baseline", default="kd")
    parser.add_argument("--metric", default="verified")
    parser.add_argument("--decodings", nargs="+", default=["greedy", "sample", "nucleus"])
    parser.add_argument(
        "--seeds", type=int, default=1, help="training seeds that a model must have"
    )
    parser.add_argument("--levels", type=int, default=4)
    options = parser.parse_args()
    found = judged(options.run, options.seeds)
    decodings(found, options.baseline, options.metric, options.decodings)
    if options.metric in QUALITIES and all(records[0]["sweep"] for records in found.values()):
        matched(found, options.baseline, options.metric, options.levels)
        curves(found, options.metric)
    seconds(options.run, found, options.seeds)


if __name__ == "__main__":
    main()
