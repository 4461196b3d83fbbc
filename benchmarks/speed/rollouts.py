"""Benchmark 4: sampling with capture against ``generate`` with its logits kept, and without."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.bars import Report
from benchmarks.speed.materials import demo_prompts
from benchmarks.speed.measure import Spread, paired, ratio, spread_of
from benchmarks.speed.settings import Setting

TOP_P, BATCH = 0.8, 32
OURS, SAMPLING = "tdistill, with capture", "tdistill, sampling alone"
KEEPING, PLAIN = "generate + output_logits + selection", "generate alone"


def run(setting: Setting) -> Report:
    """Tokens a second of the four, each round with other random numbers."""
    import torch

    from tdistill.models.language_model import load

    torch.set_num_threads(setting.threads)
    setting.materials.make()
    teacher = load(setting.materials.teacher)
    count, n, longest = setting.form.rollouts
    plan = Plan(tuple(ids for _, ids in demo_prompts(teacher)[:count]), n, longest)
    tokens: dict[str, list[int]] = {}

    def step(name: str, work: Callable[[int], int]) -> Callable[[], float]:
        made = tokens.setdefault(name, [])

        def once() -> float:
            start = time.perf_counter()
            made.append(work(len(made)))
            return time.perf_counter() - start

        return once

    methods = methods_of(teacher, plan, setting.work)
    steps = {name: step(name, work) for name, work in methods.items()}
    repetitions = setting.form.slow
    seconds = paired(steps, repetitions, note="rollouts")
    rates = {
        name: [t / s for t, s in zip(tokens[name][-repetitions:], seconds[name], strict=True)]
        for name in methods
    }
    report = Report()
    what = (
        f"SmolLM2-135M-Instruct, {count} demo prompts x {n} responses of at most {longest} tokens, "
        f"top-p {TOP_P}, float32, {setting.threads} threads; captured p = 0.9, K = 256"
    )
    report.add("rollouts.against_output_logits", ratio(rates[OURS], rates[KEEPING]), what)
    slower = ratio(rates[SAMPLING], rates[OURS])
    extra = Spread(slower.value - 1, slower.low - 1, slower.high - 1)
    report.add("rollouts.capture_cost", extra, f"{what}; time a token, writing the cache included")
    report.details = {
        "tokens_per_second": {name: spread_of(rate).json() for name, rate in rates.items()},
        "against_plain_generate": ratio(rates[OURS], rates[PLAIN]).json(),
    }
    return report


@dataclass(frozen=True)
class Plan:
    """Prompts, responses to each, and the most tokens of a response."""

    prompts: tuple[tuple[int, ...], ...]
    n: int
    longest: int

    def config(self, seed: int) -> Any:
        """Of the rollouts."""
        from tdistill.teacher.config import RolloutConfig

        return RolloutConfig(
            n=self.n,
            sampling_top_p=TOP_P,
            max_new_tokens=self.longest,
            batch_size=BATCH,
            seed=seed,
        )

    def batches(self) -> list[list[tuple[int, ...]]]:
        """Prompts of like lengths, so many that their responses fill a batch."""
        ordered, each = sorted(self.prompts, key=len), max(1, BATCH // self.n)
        return [ordered[i : i + each] for i in range(0, len(ordered), each)]


def methods_of(teacher: Any, plan: Plan, work: Path) -> dict[str, Callable[[int], int]]:
    """Each takes a seed and returns the response tokens that it made."""
    return {
        OURS: lambda seed: _capture(teacher, plan, work, seed),
        SAMPLING: lambda seed: _sample(teacher, plan, seed),
        KEEPING: lambda seed: _generate(teacher, plan, seed, keep=True),
        PLAIN: lambda seed: _generate(teacher, plan, seed, keep=False),
    }


def _capture(teacher: Any, plan: Plan, work: Path, seed: int) -> int:
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.rollouts import collect_rollouts

    folder = work / "cache-rollouts"
    shutil.rmtree(folder, ignore_errors=True)
    config = plan.config(seed)
    with CacheWriter(folder, identity_of(teacher, config.capture)) as writer:
        for _ in collect_rollouts(teacher, plan.prompts, config, writer):
            pass
    return Cache(folder).manifest.steps


def _sample(teacher: Any, plan: Plan, seed: int) -> int:
    """The responses of :func:`_capture`, drawn from the same nucleus by the same numbers."""
    from tdistill.core import top_p_sets
    from tdistill.models.generation import draw_from_sets, generate, row_uniforms, seed_of
    from tdistill.teacher.rollouts import plan_units

    made = 0
    for unit in plan_units(plan.prompts, plan.config(seed)):
        places = range(unit.first, unit.first + len(unit.prompts))
        seeds = [seed_of(unit.seed, place) for place in places]
        uniform = row_uniforms(seeds, device=teacher.device)

        def sample(logits: Any, active: Any, uniform: Any = uniform) -> Any:
            return draw_from_sets(top_p_sets(logits.log_softmax(-1), TOP_P), uniform(active))

        longest = {"max_new_tokens": plan.longest, "batch_size": BATCH}
        responses = generate(teacher, unit.prompts, sample, **longest)
        made += sum(len(response.ids) for response in responses)
    return made


def _generate(teacher: Any, plan: Plan, seed: int, *, keep: bool) -> int:
    import torch

    tokenizer = teacher.tokenizer
    tokenizer.padding_side = "left"
    made = 0
    for group in plan.batches():
        batch = [{"input_ids": list(ids)} for ids in group]
        inputs = tokenizer.pad(batch, return_tensors="pt").to(teacher.device)
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = teacher.model.generate(
                **inputs,
                do_sample=True,
                top_p=TOP_P,
                top_k=0,
                temperature=1.0,
                num_return_sequences=plan.n,
                max_new_tokens=plan.longest,
                pad_token_id=teacher.pad_id,
                output_logits=keep,
                return_dict_in_generate=True,
            )
            if keep:
                _select(out.logits)
        made += _tokens(out.sequences[:, inputs["input_ids"].shape[1] :], teacher.end_ids)
    return made


def _select(logits: Any) -> None:
    """What a cache needs of the kept logits: the sets of every step, by the fastest selection."""
    from tdistill.core import top_p_sets

    for step in logits:
        top_p_sets(step.float().log_softmax(-1), 0.9, max_size=256)


def _tokens(responses: Any, ends: tuple[int, ...]) -> int:
    """Tokens of responses that are padded after their end."""
    import torch

    ended = torch.isin(responses, torch.tensor(ends, device=responses.device))
    before = ended.long().cumsum(-1) - ended.long()
    return int((before == 0).sum())
