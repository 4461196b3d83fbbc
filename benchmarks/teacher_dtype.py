"""What half precision changes of a teacher's evidence, at the same steps.

    python benchmarks/teacher_dtype.py --teacher FOLDER [--prompts 16] [--tokens 32]

The responses are sampled from the teacher in float32. ``network`` computes in half precision and is
summed over the vocabulary in float32, which is what tdistill does; ``all`` is summed in half
precision too, which it does not. Numbers are those of the whole distribution, before rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tdistill.core import top_p_sets
from tdistill.data import DataConfig, load_examples
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import lay_out
from tdistill.models.scores import step_scores
from tdistill.models.weights import DType, WeightsConfig
from tdistill.progress import quiet_libraries
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.loading import load_stopping
from tdistill.teacher.rollouts import plan_units, sample_unit

TOP_P = 0.9


def main() -> None:
    """Sample, compare, print the table."""
    options = arguments()
    torch.set_num_threads(1)
    quiet_libraries()
    exact = loaded(options.teacher, "float32")
    rows = sampled(exact, options.prompts, options.tokens)
    steps = sum(len(row.response_ids) for row in rows)
    print(f"{len(rows)} responses of {exact.name}, {steps} steps, V = {exact.vocabulary_size}")
    reference = logits_of(exact, rows).log_softmax(-1)
    for dtype in ("bfloat16", "float16"):
        logits = logits_of(loaded(options.teacher, dtype), rows)
        for name, summed in (("network", torch.float32), ("all", getattr(torch, dtype))):
            found = logits.to(summed).log_softmax(-1).float()
            print(f"{dtype:9} {name:8} {told(reference, found, rows)}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    return parser.parse_args()


def loaded(path: Path, dtype: DType) -> LanguageModel:
    return load_stopping(path, weights=WeightsConfig(dtype))


def sampled(lm: LanguageModel, prompts: int, tokens: int) -> list[Row]:
    """Responses to prompts of the demo, one each."""
    data = DataConfig(train="demo:train")
    examples, _ = load_examples("demo:train", lm.tokenizer, data, limit=prompts)
    config = RolloutConfig(
        n=1, max_new_tokens=tokens, batch_size=16, capture=CaptureConfig(TOP_P, None)
    )
    units = plan_units([example.prompt_ids for example in examples], config)
    return [made.row for unit in units for made in sample_unit(lm, unit, config)]


@torch.no_grad()
def logits_of(lm: LanguageModel, rows: Sequence[Row]) -> Tensor:
    """The logits of every step over the vocabulary [T, V], in the precision of the network."""
    parts = []
    for row in rows:
        layout, size = lay_out([row], lm.pad_id), lm.vocabulary_size
        scores = step_scores(lm.model, layout, vocabulary_size=size)
        parts.append(scores.rows(0, len(scores)))
    return torch.cat(parts)


def told(reference: Tensor, found: Tensor, rows: Sequence[Row]) -> str:
    actions = torch.tensor([token for row in rows for token in row.response_ids])[:, None]
    action = (found.gather(1, actions) - reference.gather(1, actions)).abs()
    kl = (reference.exp() * (reference - found)).sum(-1)
    mass = found.double().exp().sum(-1)
    return (
        f"action log-prob off by {action.mean():.4f} nats (largest {action.max():.3f}); "
        f"KL {kl.mean():.6f}; mass {mass.min():.4f} to {mass.max():.4f}; "
        f"sets of p = {TOP_P} with another member at {changed(reference, found):.1%} of the steps, "
        f"of mass {moved(reference, found):.4f} a step"
    )


def membership(log_probs: Tensor) -> Tensor:
    """Whether each token is in the top-p set [T, V]; sums that are above 1 are scaled down."""
    sets = top_p_sets(log_probs - log_probs.logsumexp(-1, keepdim=True).clamp(min=0.0), TOP_P)
    inside = torch.zeros_like(log_probs, dtype=torch.bool)
    inside[sets.step, sets.ids] = True
    return inside


def changed(reference: Tensor, found: Tensor) -> float:
    return float((membership(reference) != membership(found)).any(-1).double().mean())


def moved(reference: Tensor, found: Tensor) -> float:
    """Mass, under the reference, of the tokens that are in one of the two sets."""
    apart = membership(reference) != membership(found)
    return float((reference.exp() * apart).sum(-1).mean())


if __name__ == "__main__":
    main()
