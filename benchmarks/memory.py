"""Memory and copies that must not grow with the square of a row, each beside what it replaces.

    python benchmarks/memory.py                     # a table
    python benchmarks/memory.py --json FILE         # the same as numbers

Random weights; what a mask, a buffer and an evaluation hold is counted in bytes, not timed. The
time of shared prompts beside separate rows is a bar of ``python -m benchmarks.speed --only
scaling``; here it is that of attention by parts beside the mask, in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from tdistill.models import in_place, row_trials
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Pair, lay_out, pack
from tdistill.models.scores import step_scores

VOCABULARY = 4096


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Bytes of all that is kept for the gradient within; what shares memory counts once."""
    seen: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no memory is given out twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(seen.values()))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made within."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        sizes = (t.untyped_storage().nbytes() for t in tensors)
        self.bytes = max(self.bytes, *sizes, 0)
        return made


def network(hidden: int, layers: int) -> Any:
    """A decoder of SmolLM2's shape."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 192),
        vocab_size=VOCABULARY,
        max_position_embeddings=65_536,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def rows(count: int, prompt: int, response: int) -> list[Pair]:
    """Responses to one prompt."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

    first = tokens(prompt)
    return [Pair(first, tokens(response)) for _ in range(count)]


@contextmanager
def under_masks() -> Iterator[None]:
    """Shared rows are read under a mask over the whole row, as it was."""
    with mock.patch.object(row_trials, "_sharing_of", lambda lm: "mask"):
        yield


def of_shared_rows(lengths: list[int]) -> list[dict[str, Any]]:
    """A pass over two responses to a prompt: its largest tensor, and what its gradient keeps."""
    model, found = network(64, 1), []
    step_scores(model, lay_out(rows(4, 8, 4), 1), vocabulary_size=VOCABULARY)  # tried once
    for length in lengths:
        laid, line = lay_out(rows(2, length // 2, length // 4), 1), {"row": length}
        assert laid.sharing is not None
        for name, way in (("by parts", nullcontext), ("under a mask", under_masks)):
            with way(), torch.no_grad(), Largest() as largest:
                step_scores(model, laid, vocabulary_size=VOCABULARY)
            line[f"{name}, largest MiB"] = largest.bytes / 2**20
            with way(), kept_bytes() as kept:
                step_scores(model, laid, vocabulary_size=VOCABULARY)
            line[f"{name}, kept MiB"] = kept[0] / 2**20
        found.append(line)
    return found


def gain_of_sharing(layers: int, repetitions: int) -> dict[str, Any]:
    """Forward and backward of 8 responses of 64 to a prompt of 128; separate rows are 1."""
    model, group = network(576, layers), rows(8, 128, 64)
    apart, shared = pack(group, pad_id=1), lay_out(group, 1)

    def learn(laid: Any) -> None:
        model.zero_grad(set_to_none=True)
        step_scores(model, laid, vocabulary_size=VOCABULARY).hidden.sin().sum().backward()

    def masked() -> None:
        with under_masks():
            learn(shared)

    forms: dict[str, Callable[[], None]] = {
        "separate rows": lambda: learn(apart),
        "by parts": lambda: learn(shared),
        "under a mask": masked,
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(repetitions + 1):
        for name, work in forms.items():
            start = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - start)
    middle = {name: median(times) for name, times in seconds.items()}
    gains = {name: middle["separate rows"] / s for name, s in middle.items()}
    return {"processor seconds": middle, "times separate rows": gains}


def of_decoding(tokens: list[int]) -> list[dict[str, Any]]:
    """Columns of keys and values that are copied to write a row, beside the library's cache."""
    lm, found = LanguageModel(network(64, 1), None, "m"), []  # type: ignore[arg-type]
    for count in tokens:
        line: dict[str, Any] = {"tokens": count}
        for name, growth in (("geometric", in_place._GROWTH), ("by 64", 10**9)):
            reader, moved = in_place.InPlaceReader(lm, 1), 0
            layer = mock.Mock()
            reader.cache = mock.Mock(layers=[layer])
            reader.columns.lengths = [0]
            with mock.patch.object(in_place, "_GROWTH", growth):
                for _ in range(count):
                    reader._make_room(0, 1)
                    if layer.move.called:
                        moved += reader.columns.stop
                        layer.move.reset_mock()
                    reader.columns.stop += 1
                    reader.columns.lengths[0] += 1
            line[f"{name}, columns a token"] = moved / count
        cache, copied = DynamicCache(), 0  # transformers' own: torch.cat at every token
        for _ in range(min(count, 256)):
            made, _ = cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
            copied += made.shape[2]
        line["transformers' cache, columns a token"] = copied / min(count, 256) * count / 256
        found.append(line)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16_384])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "largest tensor of shared rows": of_shared_rows(options.rows),
        "copies of decoding": of_decoding(options.tokens),
        "gain of sharing": gain_of_sharing(options.layers, options.repetitions),
    }
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
