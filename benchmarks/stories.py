"""A small world in which every objective can be compared in minutes.

The teacher is a TinyStories model (stories260K as a transformers folder; any small causal model
does). This writes prompts (beginnings of the teacher's own stories) with plain samples of the
teacher as references, and a student of about a fifth of its size with random weights:

    .venv/bin/python benchmarks/stories.py --teacher PATH --out runs/stories
    .venv/bin/tdistill run benchmarks/stories.yaml --out runs/stories/run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel, load, save

SPLITS = {"train": 1500, "valid": 60, "test": 100}
REFERENCES = {"train": 1, "valid": 5, "test": 5}
BATCH = 100


def sample(lm: LanguageModel, prompts: list[list[int]], *, length: int, seed: int) -> list[str]:
    """The text of a plain sample after each prompt, prompt included."""
    texts = []
    for first in range(0, len(prompts), BATCH):
        group = prompts[first : first + BATCH]
        sampler = decoding_sampler(Decoding(), len(group), seed=seed + first, device=lm.device)
        made = generate(lm, group, sampler, max_new_tokens=length)
        texts += [
            lm.tokenizer.decode([*p, *r.ids], skip_special_tokens=True)
            for p, r in zip(group, made, strict=True)
        ]
    return texts


def write_data(lm: LanguageModel, out: Path, *, words: int, length: int) -> None:
    """Prompts of a few words; no prompt is in two splits."""
    start: int = lm.tokenizer.bos_token_id  # type: ignore[assignment]
    wanted = sum(SPLITS.values())
    beginnings: dict[str, None] = {}
    seed = 0
    while len(beginnings) < wanted:
        for text in sample(lm, [[start]] * 400, length=3 * words, seed=seed):
            if len(text.split()) > words:
                beginnings[" ".join(text.split()[:words])] = None
        seed += 1_000_000
    prompts = iter(list(beginnings)[:wanted])
    for split, count in SPLITS.items():
        mine = [next(prompts) for _ in range(count)]
        ids = [lm.tokenizer(prompt).input_ids for prompt in mine]
        whole = [lm.tokenizer.decode(i, skip_special_tokens=True) for i in ids]
        rounds = [
            sample(lm, ids, length=length, seed=k + 7_000_000) for k in range(REFERENCES[split])
        ]
        rows = [
            {"prompt": prompt, "references": [texts[i][len(whole[i]) :] for texts in rounds]}
            for i, prompt in enumerate(mine)
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        (out / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")


def small_student(lm: LanguageModel, *, hidden: int, layers: int) -> LanguageModel:
    """The teacher's architecture, narrower and with fewer layers, weights drawn at random."""
    config = AutoConfig.from_pretrained(lm.name)
    factor = hidden / config.hidden_size
    config.hidden_size, config.num_hidden_layers = hidden, layers
    config.intermediate_size = int(config.intermediate_size * factor)
    config.num_attention_heads = hidden // config.head_dim
    config.num_key_value_heads = config.num_attention_heads // 2
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config), lm.tokenizer, "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/stories"))
    parser.add_argument("--words", type=int, default=8, help="of a prompt")
    parser.add_argument("--length", type=int, default=64, help="tokens of a reference")
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--layers", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = load(options.teacher)
    save(teacher, options.out / "teacher")
    write_data(teacher, options.out, words=options.words, length=options.length)
    student = small_student(teacher, hidden=options.hidden, layers=options.layers)
    save(student, options.out / "student")
    print(f"{teacher.num_parameters:,} and {student.num_parameters:,} parameters in {options.out}")


if __name__ == "__main__":
    main()
