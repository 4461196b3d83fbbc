"""A whole run, from a recipe to ``metrics.json`` and ``report.html``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdistill.recipe import Recipe
from tdistill.run.pipeline import Run
from tdistill.run.stages import Say


def run_recipe(recipe: Recipe, folder: Path, say: Say = print) -> dict[str, Any]:
    """Do all of a recipe and write ``metrics.json`` and ``report.html``.

    Args:
        recipe: what to do.
        folder: where everything goes; an interrupted run there is continued.
        say: prints a line for people.

    Returns:
        The metrics, as written.
    """
    run = Run(recipe, folder, say)
    reports = [folder / "metrics.json", folder / "report.html", folder / "student"]
    if run.stages.finished("report", run.keys["report"], reports):
        say(f"{folder}: this run is complete; nothing to do, its results follow")
        return write_results(run)
    run.check_student()
    say(f"  {len(run.rollouts)} teacher responses to train on")
    run.release_teacher()
    run.train()
    run.evaluate()
    return write_results(run)


def write_results(run: Run) -> dict[str, Any]:
    """Put a run whose stages are done together in ``metrics.json`` and ``report.html``.

    Args:
        run: the run.

    Returns:
        The metrics, as written.
    """
    outputs = [run.folder / "metrics.json", run.folder / "report.html"]

    def work() -> dict[str, Any]:
        from tdistill.report import write_report
        from tdistill.run.metrics import gather_metrics

        metrics = gather_metrics(run)
        outputs[0].write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        write_report(metrics, outputs[1])
        return {}

    run.stages.run("report", run.keys["report"], outputs, work)
    return json.loads(outputs[0].read_text(encoding="utf-8"))
