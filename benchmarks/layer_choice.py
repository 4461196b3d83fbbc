"""What a student knows before any training, by the rule that chose its layers.

    python benchmarks/layer_choice.py --teacher FOLDER --text FILE [--cache RUN/cache]

Judged by the nats a token of plain text. Layers are chosen on the teacher's own responses, from the
cache of a run, or without one on the text that follows what is judged.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tdistill.data import load_text_chunks
from tdistill.models.language_model import LanguageModel, load
from tdistill.models.layout import Pair, Tokens, pack
from tdistill.models.scores import step_scores
from tdistill.progress import quiet_libraries
from tdistill.teacher.cache.reader import Cache
from tdistill.training.config import LayerRule
from tdistill.training.layer_choice import LayerChoice, choose_layers
from tdistill.training.student import drop_layers, evenly_spaced


def main() -> None:
    """Choose by every rule, judge every student, print the table."""
    options = arguments()
    torch.set_num_threads(1)
    quiet_libraries()
    teacher = load(options.teacher)
    depth, fewest = teacher.model.config.num_hidden_layers, min(options.keep)
    chunks = load_text_chunks(options.text, teacher.tokenizer, options.length)
    texts = [Pair(ids[:1], ids[1:]) for ids in chunks]
    count = options.tokens // options.length
    judged, rest = texts[:count], texts[count:]
    rows = rest if options.cache is None else Cache(options.cache).rows()
    print(f"teacher, all {depth} layers: {nll(teacher, judged):.2f}", flush=True)
    influence = chosen(teacher, fewest, "influence", rows, options.measured_tokens).influence
    greedy = chosen(teacher, fewest, "greedy", rows, options.measured_tokens)
    weakest = sorted(range(depth), key=influence.__getitem__)
    print("\n| layers kept | even | influence | greedy | greedy: forward KL on its rows |")
    print("|---|---|---|---|---|")
    for keep in options.keep:
        out = depth - keep
        kept = [evenly_spaced(depth, keep)]
        kept += [tuple(sorted(set(range(depth)) - set(o[:out]))) for o in (weakest, greedy.removed)]
        cells = [f"{nll(drop_layers(teacher, layers), judged):.2f}" for layers in kept]
        loss = f"{greedy.forward_kl[out - 1]:.2f}" if out else "0"
        print(f"| {keep} | {' | '.join(cells)} | {loss} |", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--teacher", required=True, help="folder of a causal model")
    parser.add_argument("--text", required=True, help="plain text to judge on")
    parser.add_argument("--cache", type=Path, help="teacher cache to choose on")
    parser.add_argument("--keep", type=int, nargs="+", default=[26, 22, 18, 10])
    parser.add_argument("--tokens", type=int, default=2048, help="of the text that is judged")
    parser.add_argument("--length", type=int, default=256, help="of a piece of text")
    parser.add_argument("--measured-tokens", type=int, default=512, help="to choose layers on")
    return parser.parse_args()


def chosen(
    teacher: LanguageModel, keep: int, rule: LayerRule, rows: Sequence[Tokens], tokens: int
) -> LayerChoice:
    """The choice, and what it took."""
    begun, cpu = time.perf_counter(), time.process_time()
    choice = choose_layers(teacher, keep, rule, rows, measured_tokens=tokens)
    took = time.perf_counter() - begun
    print(
        f"{rule}: {took:.0f} s, {time.process_time() - cpu:.0f} s of a core, on "
        f"{choice.measured_steps} steps"
    )
    if choice.removed:
        print(f"  left out, in order: {', '.join(map(str, choice.removed))}")
    else:
        print(f"  influence: {', '.join(f'{x:.3f}' for x in choice.influence)}", flush=True)
    return choice


@torch.no_grad()
def nll(lm: LanguageModel, texts: Sequence[Pair]) -> float:
    """Nats a token of the texts, each read from its first token on."""
    total, steps = 0.0, 0
    for text in texts:
        layout = pack([text], pad_id=lm.pad_id).to(lm.device)
        scores = step_scores(lm.model, layout, vocabulary_size=lm.vocabulary_size)
        action = torch.tensor(text.response_ids, device=lm.device)
        at = scores.at(action, torch.arange(len(action), device=lm.device))
        total += float((scores.log_normaliser() - at).sum())
        steps += len(action)
    return total / steps


if __name__ == "__main__":
    main()
