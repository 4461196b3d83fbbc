"""A whole job on a teacher made from nothing, in about a minute: that an installation works.

    python benchmarks/one_minute.py [FOLDER]

It needs what the package needs and nothing else: no hub, no file of a checkout. `make release` runs
it with the wheel alone in an empty environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "<end>", *(f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou")]
ROWS, LAYERS = 40, 4
SHORT = ("--training.steps", "8", "--start.training.steps", "8", "--rollouts.max_new_tokens", "12")
SHORT += ("--evaluation.max_new_tokens", "12")


def main(folder: Path) -> None:
    """Write a teacher and prompts, then do what a new user does."""
    write_teacher(folder / "teacher")
    rows = [{"prompt": text(i), "completion": " " + text(7 * i + 1)} for i in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe, out = folder / "recipe.yaml", folder / "run"
    teacher, data = str(folder / "teacher"), str(folder / "rows.jsonl")
    tdistill("init", "--teacher", teacher, "--data", data, "--out", str(recipe))
    tdistill("doctor", str(recipe))
    tdistill("run", str(recipe), "--out", str(out), *SHORT)
    tdistill("try", str(out), "--prompts", data, "--limit", "2", "--max-new-tokens", "6")
    tdistill("publish", str(out), "--repo", "somebody/small")
    for name in ("report.html", "metrics.json", "student/model.safetensors", "student/README.md"):
        assert (out / name).stat().st_size > 0, f"{name} was not written"
    print(f"one minute: everything that was asked for is in {out}")


def write_teacher(folder: Path) -> None:
    """A random network whose next words differ in probability."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def text(seed: int) -> str:
    """A few words."""
    return " ".join(WORDS[2 + (seed * 5 + 3 * i) % (len(WORDS) - 2)] for i in range(2 + seed % 4))


def tdistill(*words: str) -> None:
    """A command in a process of its own, as a person gives it."""
    print(f"$ tdistill {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "tdistill", *words], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
