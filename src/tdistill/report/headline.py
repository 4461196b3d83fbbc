"""The report's title: what was won and what was lost, as far as the paired intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tdistill.report.findings import SHARED_DECODINGS, against
from tdistill.report.measures import (
    count,
    in_order,
    in_sentence,
    listed,
    measure,
    model_name,
    number,
    verdict,
)
from tdistill.report.result import START, TEACHER, Result
from tdistill.report.tables import (
    VERDICTS,
    Column,
    divergence_metric,
    quality_metric,
    table_columns,
)

_UNDECIDED = {"even": "not told apart", "": "without an interval, not a ranking"}


def headline(result: Result) -> str:
    """What became of right answers and of the forward KL, what else was won, lost, and is missing.

    What was won is told of the quality alone, what was lost of every measure of the table.
    """
    right = _right(result)
    led = [right, _moved(result)] if right else [_closer(result)]
    return "; ".join(x for x in [*led, _gained(result), _lost(result), _missing(result)] if x)


def _kl(result: Result) -> Column:
    return Column(divergence_metric(result))


def _right(result: Result) -> str:
    """What became of right answers, where somebody says which are right."""
    metric = quality_metric(result)
    column = Column(metric, in_order(result.decodings, SHARED_DECODINGS)[0])
    ends = _from_to(result, column)
    if metric not in VERDICTS or ends is None:
        return ""
    name, title = model_name(result.distilled), _titled([column])
    teacher, student = (count(result.parameters[x]) for x in (TEACHER, result.distilled))
    found = _against(result, START, column)
    if found not in ("better", "worse"):
        return f"{title}: {ends[0]} before {name}, {ends[1]} after; {_UNDECIDED[found]}"
    whose = f"a {student} student of a {teacher} teacher from {ends[0]} to {ends[1]}"
    return f"{name} {'raises' if found == 'better' else 'lowers'} {title} of {whose}"


def _moved(result: Result) -> str:
    """What became of the forward KL, in few words."""
    kl = _kl(result)
    ends, found = _from_to(result, kl), _against(result, START, kl)
    name = in_sentence(kl.title)
    moved = {"better": "falls", "worse": "rises"}.get(found)
    return f"{name} {moved} from {ends[0]} to {ends[1]} nats a step" if ends and moved else ""


def _closer(result: Result) -> str:
    teacher, student = (count(result.parameters[x]) for x in (TEACHER, result.distilled))
    kl = _kl(result)
    ends = _from_to(result, kl)
    if ends is None:
        return f"A {student}-parameter student of a {teacher}-parameter teacher"
    name, (a, b), found = model_name(result.distilled), ends, _against(result, START, kl)
    if found in ("better", "worse"):
        moved = "lowers" if found == "better" else "raises"
        whose = f"the {in_sentence(kl.title)} of a {student} student to its {teacher} teacher"
        return f"{name} {moved} {whose} from {a} to {b} nats a step"
    return (
        f"{kl.title} to the teacher: {a} nats a step before {name}, {b} after; {_UNDECIDED[found]}"
    )


def _from_to(result: Result, column: Column) -> tuple[str, str] | None:
    """A measure of the start and of the student; None where one was not measured."""
    found = [result.estimate(x, column.metric, column.decoding) for x in (START, result.distilled)]
    a, b = (None if e is None else number(e.mean, column.measure.digits) for e in found)
    return None if a is None or b is None else (a, b)


def _against(result: Result, other: str, column: Column) -> str:
    return verdict(against(result, other, column.metric, column.decoding), column.measure)


def _gained(result: Result) -> str:
    """Where the student's quality is above that of the baseline."""
    columns = [c for c in table_columns(result) if c.metric == quality_metric(result)]
    return _compared(result, "better", {result.baseline: columns})


def _lost(result: Result) -> str:
    """Measures of the table in which the student is worse than the start, or than the baseline."""
    columns = table_columns(result)
    # The title's first part says already how the divergence stands to the start.
    others = {START: [c for c in columns if c != _kl(result)], result.baseline: columns}
    return _compared(result, "worse", others)


def _compared(result: Result, wanted: str, columns: Mapping[str, Sequence[Column]]) -> str:
    parts = []
    for other, asked in columns.items():
        titles = _titles(asked, [c for c in asked if _against(result, other, c) == wanted])
        if titles and other != result.distilled:
            name = "the start" if other == START else model_name(other)
            parts.append(f"{wanted} than {name} in {listed(titles)}")
    return "; ".join(parts)


def _titles(asked: Sequence[Column], found: Sequence[Column]) -> list[str]:
    """The measures of the columns found; where, unless it is everywhere that was asked for."""
    titles = []
    for metric in dict.fromkeys(column.metric for column in found):
        places, every = ([c for c in some if c.metric == metric] for some in (found, asked))
        titles.append(every[0].measure.title if len(places) == len(every) else _titled(places))
    return titles


def _titled(columns: Sequence[Column]) -> str:
    """A measure, and where: places of the same measure share its name."""
    places = ", ".join(column.place for column in columns if column.place)
    return f"{columns[0].measure.title} ({places})" if places else columns[0].measure.title


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
            title = _titled([Column(metric, decoding)])
            return f"{title} {reached} {number(theirs.mean, what.digits)}"
    return ""
