"""Does ranking responses by implied reward agree with the teacher's likelihood and with Rouge-L?

Candidates of each prompt: samples of the teacher and of the student at temperature 1, and the
reference. Prints a table for the log; ``--json`` also keeps every number.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdistill.data import DataConfig, Example, load_examples
from tdistill.evaluation.intervals import Sample, crossed_interval
from tdistill.evaluation.metrics import rouge_l
from tdistill.evaluation.ranking import ranks_within, spearman_within
from tdistill.evaluation.responses import respond, text_of
from tdistill.evaluation.reward import Reading, read_rewards
from tdistill.evidence.evidence import Evidence, EvidenceSource, concatenate, take_responses
from tdistill.evidence.rows import Row
from tdistill.models.adoption import shared_vocabulary
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import LanguageModel, load
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tdistill.training.objectives import TemporalDifference

SHIFTS = ("raw", "normalised")


@dataclass(frozen=True)
class Candidate:
    """A response to prompt number ``prompt``; Rouge-L is None for the reference itself."""

    prompt: int
    writer: str
    row: Row
    rouge: float | None


class Remembered:
    """A source asked only once for each row: every reading uses the same sets."""

    def __init__(self, source: EvidenceSource, set_top_p: float) -> None:
        self.source, self.set_top_p = source, set_top_p
        self.known: dict[Row, Evidence] = {}

    def evidence(self, rows: Sequence[Row], *, set_top_p: float | None = None) -> Evidence:
        assert set_top_p == self.set_top_p
        new = [row for row in dict.fromkeys(rows) if row not in self.known]
        if new:
            found = self.source.evidence(new, set_top_p=set_top_p)
            self.known |= zip(
                new, take_responses(found, [len(r.response_ids) for r in new]), strict=True
            )
        return concatenate([self.known[row] for row in rows])


def candidates_of(
    examples: Sequence[Example], writers: dict[str, tuple[LanguageModel, int]], max_new_tokens: int
) -> list[Candidate]:
    """The references and samples at temperature 1, ``writers`` naming who and how many."""
    prompts = [example.prompt_ids for example in examples]
    found = [
        Candidate(i, "reference", Row(e.prompt_ids, e.reference_ids, e.reference_ended), None)
        for i, e in enumerate(examples)
    ]
    for name, (model, seeds) in writers.items():
        made = respond(
            model, prompts, Decoding(), seeds=seeds, max_new_tokens=max_new_tokens, batch_size=24
        )
        found += [
            Candidate(
                i,
                name,
                Row(prompts[i], response.ids, response.ended),
                rouge_l(text_of(model, response), examples[i].references),
            )
            for round_ in made.responses
            for i, response in enumerate(round_)
        ]
    return found


def scores_of(readings: Sequence[Reading]) -> dict[str, list[float | None]]:
    """Every way to rank, by name."""
    return {
        "mean": [r.mean for r in readings],
        "total": [r.total for r in readings],
        "discounted": [r.discounted for r in readings],
    }


def measure(
    candidates: Sequence[Candidate],
    scores: Sequence[float | None],
    likelihood: dict[str, list[float]],
) -> dict[str, object]:
    """Agreement of one way to rank with the teacher's likelihood, with Rouge-L, and its first."""
    prompts = [c.prompt for c in candidates]
    found: dict[str, object] = {
        name: interval(spearman_within(prompts, scores, values))
        for name, values in likelihood.items()
    }
    theirs = [i for i, c in enumerate(candidates) if c.writer == "teacher"]
    among = likelihood["log pi* a token"]
    found["among teacher samples"] = interval(
        spearman_within(
            [prompts[i] for i in theirs], [scores[i] for i in theirs], [among[i] for i in theirs]
        )
    )
    rouge = [c.rouge for c in candidates]
    found["Rouge-L"] = interval(spearman_within(prompts, scores, rouge))
    first = [i for i, rank in enumerate(ranks_within(prompts, scores)) if rank == 1]
    found["first"] = dict(Counter(candidates[i].writer for i in first))
    samples = [i for i, c in enumerate(candidates) if c.rouge is not None]
    inside = [prompts[i] for i in samples]
    ranks = ranks_within(inside, [scores[i] for i in samples])
    best = {prompts[i]: rouge[i] for i, rank in zip(samples, ranks, strict=True) if rank == 1}
    mean = {p: np.mean([rouge[i] for i in samples if prompts[i] == p]) for p in best}
    found["gain"] = interval([best[p] - mean[p] for p in best])
    return found


def interval(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean over prompts with its bootstrap interval; None where no prompt has a value."""
    if not values:
        return None
    return {**crossed_interval([Sample(np.array(values))]).to_dict(), "prompts": len(values)}


def written(part: dict[str, float] | None, digits: int = 2) -> str:
    if part is None or part["low"] is None:
        return "-"
    return f"{part['mean']:.{digits}f} [{part['low']:.{digits}f}, {part['high']:.{digits}f}]"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, help="prompts with references")
    parser.add_argument("--last", type=int, default=200, help="prompts are among the last N rows")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--teacher-samples", type=int, default=2)
    parser.add_argument("--student-samples", type=int, default=1)
    parser.add_argument("--set-top-p", type=float, default=0.8)
    parser.add_argument("--discount", type=float, default=0.99)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    a = arguments()
    student, teacher = load(a.student), load(a.teacher)
    config = DataConfig(
        system="",
        max_prompt_tokens=100_000,
        max_response_tokens=a.max_new_tokens,
    )
    examples, _ = load_examples(a.data, teacher.tokenizer, config, require_references=True)
    short = [e for e in examples[-a.last :] if len(e.prompt_ids) <= a.max_prompt_tokens]
    examples = short[: a.prompts]
    writers = {"teacher": (teacher, a.teacher_samples), "student": (student, a.student_samples)}
    candidates = candidates_of(examples, writers, a.max_new_tokens)
    vocabulary = shared_vocabulary(teacher, student)
    rows = [c.row for c in candidates]
    readings = {}
    # The student on its own sets is the control: it knows nothing of the teacher but its training.
    readers = {"student": (student, teacher), "teacher": (teacher, teacher)}
    readers |= {"student, own sets": (student, student)}
    sources = {
        lm: Remembered(
            LiveTeacher(lm, CaptureConfig(a.set_top_p, None), vocabulary_size=vocabulary),
            a.set_top_p,
        )
        for lm in (teacher, student)
    }
    for name, (model, sets) in readers.items():
        for shift in SHIFTS:
            objective = TemporalDifference(shift=shift, set_top_p=a.set_top_p, discount=a.discount)
            readings[name, shift] = read_rewards(
                model, objective, rows, sources[sets], vocabulary_size=vocabulary
            )
    report(candidates, readings, a.json)


def report(
    candidates: Sequence[Candidate],
    readings: dict[tuple[str, str], list[Reading]],
    path: Path | None,
) -> None:
    """Print the tables."""
    for writer in ("reference", "teacher", "student"):
        own = [i for i, c in enumerate(candidates) if c.writer == writer]
        lengths = [len(candidates[i].row.response_ids) for i in own]
        ended = np.mean([candidates[i].row.ended for i in own])
        off = sum(sum(readings["student", "raw"][i].off_set) for i in own) / sum(lengths)
        rouge = [candidates[i].rouge for i in own if candidates[i].rouge is not None]
        print(
            f"{writer}: {len(own)} responses, {np.mean(lengths):.1f} tokens, ended {ended:.2f}, "
            f"off the set {off:.3f} of tokens"
            + (f", Rouge-L {np.mean(rouge):.1f}" if rouge else "")
        )
    own = readings["teacher", "raw"]
    likelihood = {
        "log pi* a token": [sum(r.log_prob) / len(r.log_prob) for r in own],
        "log pi*": [sum(r.log_prob) for r in own],
    }
    ways = {
        (model, shift, by): scores
        for (model, shift), found in readings.items()
        for by, scores in scores_of(found).items()
    }
    for model in ("student", "teacher"):
        sums = [sum(r.log_prob) for r in readings[model, "raw"]]
        tokens = [len(r.log_prob) for r in readings[model, "raw"]]
        ways[model, "likelihood", "mean"] = [s / n for s, n in zip(sums, tokens, strict=True)]
        ways[model, "likelihood", "total"] = sums
    ways["-", "off the teacher's set", "share"] = [-sum(r.off_set) / len(r.off_set) for r in own]
    ways["-", "tokens", "fewest"] = [-float(len(c.row.response_ids)) for c in candidates]
    measured = {way: measure(candidates, scores, likelihood) for way, scores in ways.items()}
    columns = ("log pi* a token", "log pi*", "among teacher samples", "Rouge-L", "gain")
    print("\n| model | reward | by | " + " | ".join(columns) + " | first: ref/teacher/student |")
    print("|" + "---|" * (len(columns) + 4))
    for way, found in measured.items():
        first = "/".join(str(found["first"].get(w, 0)) for w in ("reference", "teacher", "student"))
        print(f"| {' | '.join(way)} | {' | '.join(written(found[c]) for c in columns)} | {first} |")
    if path is not None:
        plain = {" ".join(way): found for way, found in measured.items()}
        path.write_text(json.dumps(plain, indent=1), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
