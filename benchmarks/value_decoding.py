"""Do values help a finished student: decoding by them, and ranking its samples by them?

    python benchmarks/value_decoding.py RUN LABEL [--weights 0 0.5 1 2 4]

RUN is the folder of a run with ``training.keep_critic``, LABEL an objective with a critic; of a
tilt with beta 0 the student is kd's. Tokens are drawn from ``pi(a) exp(-w g(a)) / Z`` on the
nucleus of pi; ranking takes the best of n samples by the likelihood a token, and by the least sum
of g less its mean under pi.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdistill.data import Example, load_examples
from tdistill.evaluation.intervals import Sample, crossed_interval
from tdistill.evaluation.verifier import Verifier, load_verifier
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, load
from tdistill.models.layout import lay_out
from tdistill.models.scores import step_scores
from tdistill.recipe import placed, read_recipe
from tdistill.run.folders import model_folder, world_folder
from tdistill.training.critic import Critic, load_critic

NUCLEUS = 0.95


@torch.no_grad()
def scores(lm: LanguageModel, critic: Critic, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and g of every token at the steps of rows [T, V]."""
    found = step_scores(lm.model, lay_out(rows, lm.pad_id), vocabulary_size=lm.vocabulary_size)
    assert found.hidden is not None
    steps = len(found.hidden)
    tokens = torch.arange(lm.vocabulary_size)
    to_go = critic.scores(found.hidden).at(
        tokens.repeat(steps), torch.arange(steps).repeat_interleave(len(tokens))
    )
    return found.rows(0, steps).log_softmax(-1), to_go.view(steps, -1)


def in_nucleus(log_probs: Tensor) -> Tensor:
    """Which tokens are in the nucleus of each step."""
    ordered, order = log_probs.exp().sort(descending=True)
    inside = ordered.cumsum(-1) - ordered < NUCLEUS
    return torch.zeros_like(inside).scatter(-1, order, inside)


def sample(
    lm: LanguageModel,
    critic: Critic,
    prompts: Sequence[tuple[int, ...]],
    *,
    weight: float,
    most: int,
    greedy: bool,
) -> list[Row]:
    """A response to each prompt, drawn from the tilted policy or its likeliest token by token."""
    rows = [Row(ids, (lm.pad_id,), ended=False) for ids in prompts]
    for _ in range(most):
        alive = [i for i, row in enumerate(rows) if not row.ended]
        if not alive:
            break
        log_probs, to_go = scores(lm, critic, [rows[i] for i in alive])
        last = np.cumsum([len(rows[i].response_ids) for i in alive]) - 1
        log_probs, to_go = log_probs[last], to_go[last]
        tilted = (log_probs - weight * to_go).masked_fill(~in_nucleus(log_probs), float("-inf"))
        drawn = tilted.argmax(-1) if greedy else tilted.softmax(-1).multinomial(1).squeeze(1)
        for i, token in zip(alive, drawn.tolist(), strict=True):
            ended = token in lm.end_ids
            kept = (*rows[i].response_ids[:-1], token)
            rows[i] = Row(rows[i].prompt_ids, kept if ended else (*kept, lm.pad_id), ended=ended)
    return [r if r.ended else Row(r.prompt_ids, r.response_ids[:-1], ended=False) for r in rows]


def read(lm: LanguageModel, critic: Critic, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Mean log-probability a token and the sum of g of each response."""
    log_probs, to_go = scores(lm, critic, rows)
    action = torch.tensor([token for row in rows for token in row.response_ids])[:, None]
    lengths = [len(row.response_ids) for row in rows]
    own = log_probs.gather(1, action).squeeze(1).split(lengths)
    cost = (to_go - (log_probs.exp() * to_go).sum(1, keepdim=True)).gather(1, action).squeeze(1)
    return [float(x.mean()) for x in own], [float(x.sum()) for x in cost.split(lengths)]


def judged(lm: LanguageModel, rows: Sequence[Row], test: Sequence[Example], how: Verifier) -> list:
    decode = lm.tokenizer.decode
    texts = [decode(list(row.response_ids), skip_special_tokens=True).strip() for row in rows]
    return [how(text, example) for text, example in zip(texts, test, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("label")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    recipe = read_recipe(options.run / "recipe.resolved.yaml")
    recipe = placed(recipe, world_folder(recipe, options.run))
    folder = model_folder(recipe, options.run, options.label)
    lm, objective = load(folder), recipe.objectives[options.label]
    critic = load_critic(folder, objective.critic)
    verifier = load_verifier(recipe.evaluation.verify)
    test, _ = load_examples(recipe.data.test, lm.tokenizer, recipe.data)
    prompts, most = [e.prompt_ids for e in test], recipe.evaluation.max_new_tokens
    for weight in options.weights:
        made = [
            sample(lm, critic, prompts, weight=weight, most=most, greedy=greedy)
            for greedy in (True, *[False] * 3)
        ]
        right = [judged(lm, rows, test, verifier) for rows in made]
        own = Sample(np.asarray(right[1:]).T).interval()
        print(json.dumps({"weight": weight, "greedy": np.mean(right[0]), "T=1": own.to_dict()}))
    drawn = [
        sample(lm, critic, prompts, weight=0.0, most=most, greedy=False)
        for _ in range(options.samples)
    ]
    right = np.asarray([judged(lm, rows, test, verifier) for rows in drawn])
    likelihood, cost = np.moveaxis(np.asarray([read(lm, critic, rows) for rows in drawn]), 1, 0)
    everyone = np.arange(len(test))
    first = Sample(right[likelihood.argmax(0), everyone])
    for name, best in (("likelihood", likelihood.argmax(0)), ("g", cost.argmin(0))):
        chosen = Sample(right[best, everyone])
        print(
            json.dumps(
                {
                    "best of": options.samples,
                    "by": name,
                    "right": chosen.interval().to_dict(),
                    "less likelihood": crossed_interval([chosen], [first]).to_dict(),
                }
            )
        )


if __name__ == "__main__":
    main()
