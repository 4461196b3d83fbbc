"""Given responses, ranked under their prompts by implied reward (4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tdistill.data import Example
from tdistill.data.token_texts import token_texts
from tdistill.evaluation.ranking import ranks_within, spearman, spearman_within
from tdistill.evaluation.reward import Reading, read_rewards
from tdistill.evidence.rows import Row
from tdistill.models.adoption import shared_vocabulary
from tdistill.models.language_model import LanguageModel
from tdistill.progress import Progress
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tdistill.training.critic import Critic
from tdistill.training.objectives import TemporalDifference

_SHORT = 60
_OF_TEACHER = ("teacher_log_prob_per_token", "teacher_log_prob")
_OF_CRITIC = ("cost_to_go",)


def ranked_rewards(
    examples: Sequence[Example],
    model: LanguageModel,
    teacher: LanguageModel | None,
    objective: TemporalDifference,
    capture: CaptureConfig,
    *,
    critic: Critic | None = None,
    rank_by: str = "mean",
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """The implied reward of responses, and their ranks among those to the same prompt.

    Args:
        examples: prompts, each with one response.
        model: the model whose reward is read.
        teacher: whose top-p sets the values are over; None: the model's own.
        objective: how logits become Q; its set_top_p and discount.
        capture: which sets are taken from the teacher.
        critic: of the model; with it the records have the costs to go, too.
        rank_by: ``mean``, ``total`` or ``discounted`` reward; a missing one ranks last.
        batch_size: rows of one forward pass.

    Returns:
        A record per response for ``rewards.jsonl``, sums in nats first, then every token's numbers.

    Raises:
        ModelError: the tokenizers differ, or the model gives a number that is not finite.
    """
    size = model.vocabulary_size if teacher is None else shared_vocabulary(teacher, model)
    rows = [Row(e.prompt_ids, e.reference_ids, e.reference_ended, "reference") for e in examples]
    bar = Progress("reward", len(rows), "responses")
    readings = read_rewards(
        model,
        objective,
        rows,
        LiveTeacher(teacher or model, capture, vocabulary_size=size),
        vocabulary_size=size,
        critic=critic,
        batch_size=batch_size,
        on_batch=bar.advance,
    )
    bar.close()
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(row.prompt_ids, len(numbers)) for row in rows]
    ranks = ranks_within(prompts, [getattr(reading, rank_by) for reading in readings])
    texts = [token_texts(model.tokenizer, row.response_ids) for row in rows]
    unknown = [*(_OF_TEACHER if teacher is None else ()), *(_OF_CRITIC if critic is None else ())]
    parts = zip(prompts, ranks, examples, readings, texts, strict=True)
    return [
        {key: value for key, value in _record(*part).items() if key not in unknown}
        for part in parts
    ]


def _record(
    prompt: int, rank: int, example: Example, reading: Reading, texts: list[str]
) -> dict[str, Any]:
    return {
        "prompt_number": prompt,
        "rank": rank,
        "prompt": example.question or example.prompt,
        "response": example.references[0],
        "mean_reward": reading.mean,
        "total_reward": reading.total,
        "discounted_reward": reading.discounted,
        "log_prob_per_token": fmean(reading.log_prob),
        "off_set_tokens": sum(reading.off_set),
        "ended": example.reference_ended,
        "teacher_log_prob_per_token": fmean(reading.teacher_log_prob),
        "tokens": texts,
        "implied_reward": list(reading.implied_reward),
        "value": list(reading.value),
        "log_prob": list(reading.log_prob),
        "teacher_log_prob": list(reading.teacher_log_prob),
        "cost_to_go": list(reading.cost_to_go),
    }


def ranking_summary(records: Sequence[dict[str, Any]], rank_by: str = "mean") -> list[str]:
    """What the records of `ranked_rewards` amount to, a line each."""
    by = f"{rank_by}_reward"
    known = [r for r in records if r[by] is not None]
    prompts = len({r["prompt_number"] for r in records})
    lines = [f"{len(records)} responses to {prompts} prompts"]
    if not known:
        return [*lines, "no reward is known: every response was cut after its first token"]
    lines.append(
        f"mean reward {fmean(r['mean_reward'] for r in known):.2f} nats a token, log-probability "
        f"{fmean(r['log_prob_per_token'] for r in known):.2f} nats a token (means over responses)"
    )
    lines += _correlation(known, by)
    order = sorted(known, key=lambda r: -r[by])
    for name, record in (("best", order[0]), ("worst", order[-1])):
        text = " ".join(record["response"].split())
        short = text if len(text) <= _SHORT else text[: _SHORT - 1] + "\N{HORIZONTAL ELLIPSIS}"
        lines.append(f"{name} {record[by]:8.2f}  {short}")
    return lines


def _correlation(known: Sequence[dict[str, Any]], by: str) -> list[str]:
    """Whether the reward ranks as the likelihood does."""
    rewards, likely = [r[by] for r in known], [r["log_prob_per_token"] for r in known]
    within = spearman_within([r["prompt_number"] for r in known], rewards, likely)
    overall = spearman(rewards, likely)
    parts = [f"{fmean(within):.2f} within a prompt ({len(within)} prompts)"] if within else []
    parts += [f"{overall:.2f} over all responses"] if overall is not None else []
    what = "rank correlation with log-probability a token"
    return [f"{what}: {', '.join(parts)}"] if parts else []
