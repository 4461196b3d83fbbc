"""Ground-truth responses as evidence: scored by the teacher into the cache of the rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdistill.hashing import key_of
from tdistill.progress import Progress
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.scoring import collect_scores

if TYPE_CHECKING:
    from tdistill.evidence.rows import Row
    from tdistill.run.pipeline import Run


def score_references(run: Run, rows: Sequence[Row], folder: Path) -> None:
    """Add the teacher's evidence of ground-truth responses to a cache, where it is not there.

    Args:
        run: whose teacher scores, and whose stage this is.
        rows: the responses.
        folder: the cache of the run's rollouts.
    """

    def score() -> dict[str, Any]:
        live = run.live_teacher
        bar, done = Progress("score references", len(rows)), 0
        with CacheWriter(folder, identity_of(run.teacher, live.config)) as writer:
            for count in collect_scores(live, rows, writer):
                done += count
                bar.update(done, "responses")
        bar.close()
        return {"rows": done}

    key = key_of(run.keys["rollouts"], "references")
    run.stages.run("references", key, [folder / "manifest.json"], score)
