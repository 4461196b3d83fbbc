"""The report's title: what was won and what was lost, as far as the paired intervals allow."""

from __future__ import annotations

from tdistill.report.findings import against
from tdistill.report.measures import count, listed, measure, model_name, number, verdict
from tdistill.report.result import START, TEACHER, Result
from tdistill.report.tables import Column, quality_metric, table_columns

_UNDECIDED = {"even": "not told apart", "": "without an interval, not a ranking"}


def headline(result: Result) -> str:
    """What became of the forward KL, then what training cost, then how far the teacher is."""
    lost = [text for text in (_lost(result), _missing(result)) if text]
    return "; ".join([_won(result), *lost])


def _won(result: Result) -> str:
    before = result.estimate(START, "forward_kl", None)
    after = result.estimate(result.distilled, "forward_kl", None)
    teacher, student = (count(result.parameters[x]) for x in (TEACHER, result.distilled))
    if before is None or after is None:
        return f"A {student}-parameter student of a {teacher}-parameter teacher"
    name, a, b = model_name(result.distilled), number(before.mean, 2), number(after.mean, 2)
    found = verdict(against(result, START, "forward_kl", None), measure("forward_kl"))
    if found in ("better", "worse"):
        moved = "lowers" if found == "better" else "raises"
        whose = f"the forward KL of a {student} student to its {teacher} teacher"
        return f"{name} {moved} {whose} from {a} to {b} nats a step"
    return (
        f"Forward KL to the teacher: {a} nats a step before {name}, {b} after; {_UNDECIDED[found]}"
    )


def _lost(result: Result) -> str:
    """Measures of the table in which the student is worse than the start, or than the baseline."""
    others = {START: "the start", result.baseline: model_name(result.baseline)}
    parts = [
        f"worse than {name} in {listed(worse)}"
        for other, name in others.items()
        if other != result.distilled and (worse := _worse(result, other))
    ]
    return "; ".join(parts)


def _worse(result: Result, other: str) -> list[str]:
    # The title's first part says already how the forward KL stands to the start.
    skipped = {"forward_kl"} if other == START else set()
    return [
        _titled(column)
        for column in table_columns(result)
        if column.metric not in skipped
        and verdict(against(result, other, column.metric, column.decoding), column.measure)
        == "worse"
    ]


def _titled(column: Column) -> str:
    return f"{column.measure.title} ({column.place})" if column.place else column.measure.title


def _missing(result: Result) -> str:
    """How much of the teacher's quality the student reaches, where it is told apart and less."""
    metric = quality_metric(result)
    what = measure(metric)
    for decoding in result.decodings:
        theirs = result.estimate(TEACHER, metric, decoding)
        ours = result.estimate(result.distilled, metric, decoding)
        found = verdict(against(result, TEACHER, metric, decoding), what)
        if theirs is not None and ours is not None and found == "worse":
            reached = f"{number(ours.mean, what.digits)} of the teacher's"
            place = Column(metric, decoding).place
            return f"{what.title} ({place}) {reached} {number(theirs.mean, what.digits)}"
    return ""
