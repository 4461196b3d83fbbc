"""A base checkpoint as the student of an instruct teacher: one run, and a student that chats."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from architectures import architecture_lm
from tdistill.errors import ModelError
from tdistill.models.finite import NonFiniteError
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.recipe import Recipe, read_recipe
from tdistill.run.pipeline import Run
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import RolloutConfig
from tdistill.teacher.rollouts import collect_rollouts
from tiny import VOCABULARY, tiny_lm, tiny_model, tokenizer

STOP = VOCABULARY  # the token that the teacher's template ends turns with
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|stop|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def words(template: str | None, *added: str) -> Any:
    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": list(added)})
    own.chat_template = template
    return own


def recipe_of(folder: Path, *more: str) -> Recipe:
    """Teacher and student of one family in a folder, and data."""
    instruct = words(TEMPLATE, "<|stop|>")
    teacher = tiny_model(vocab_size=VOCABULARY + 8, num_hidden_layers=2)
    save(LanguageModel(teacher, instruct, "instruct"), folder / "teacher")
    save(LanguageModel(tiny_model(seed=1), words(None), "base"), folder / "student")
    rows = [json.dumps({"prompt": f"{a} b", "completion": "c"}) for a in "defghi"]
    (folder / "rows.jsonl").write_text("\n".join(rows[:4]))
    (folder / "test.jsonl").write_text("\n".join(rows[4:]))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{path: {folder}/teacher}}\n"
        f"student: {{path: {folder}/student}}\n"
        f"data: {{train: {folder}/rows.jsonl, valid: {folder}/test.jsonl, "
        f"test: {folder}/test.jsonl}}\n"
        "rollouts: {n: 1, max_new_tokens: 6, batch_size: 4}\n"
    )
    return read_recipe(recipe, list(more))


def test_the_student_takes_what_makes_the_teacher_chat(tmp_path: Path):
    said: list[str] = []
    run = Run(recipe_of(tmp_path), tmp_path / "out", said.append)
    run.groundwork.check_student()
    assert "  student: the chat template is the teacher's" in said
    assert "  student: responses end at <end>, <|stop|>" in said
    assert f"  {VOCABULARY + 1} tokens shared by teacher and student" in said
    assert run.groundwork.load_teacher().end_ids == (1, STOP)
    made = run.groundwork.make_student()
    assert AutoTokenizer.from_pretrained(made).chat_template == TEMPLATE
    assert load(made).end_ids == (1, STOP)
    assert load(made).vocabulary_size == VOCABULARY + 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--rollouts.max-new-tokens", "200"], "rollouts.max_new_tokens: expected rows"),
        (["--evaluation.max-new-tokens", "200"], "evaluation.max_new_tokens: expected rows"),
        (["--student.path", "null", "--student.layers", "2"], "expected a causal language model"),
    ],
)
def test_models_that_cannot_do_it_are_refused_before_any_work(
    words: list[str], problem: str, tmp_path: Path
):
    recipe = recipe_of(tmp_path, *words)
    other = "gpt2" if "max-new" in words[0] else "xlnet"
    save(architecture_lm(other), tmp_path / "teacher")
    save(architecture_lm(other), tmp_path / "student")
    with pytest.raises(ModelError, match=problem):
        Run(recipe, tmp_path / "out", lambda line: None).groundwork.check_student()
    assert not (tmp_path / "out" / "cache").exists()


def test_a_long_row_beyond_what_a_model_was_made_for_is_said(tmp_path: Path):
    said: list[str] = []
    recipe = recipe_of(tmp_path, "--rollouts.max-new-tokens", "200")
    Run(recipe, tmp_path / "out", said.append).groundwork.check_student()
    assert sum("rollouts.max_new_tokens: rows of up to 204 tokens" in line for line in said) == 2


def test_rollouts_that_break_leave_what_was_finished(tmp_path: Path):
    """The teacher overflows at the token of the second shard's prompt."""
    lm, marks = tiny_lm(), []
    model: Any = lm.model
    model.model.register_forward_pre_hook(
        lambda module, args, inputs: marks.append(inputs["input_ids"] == 9), with_kwargs=True
    )
    hook = model.model.layers[1].register_forward_hook(
        lambda module, args, made: made.masked_fill(marks[-1][..., None], float("inf"))
    )
    config = RolloutConfig(n=1, max_new_tokens=1, batch_size=1, batches_per_shard=1)
    prompts = [(5,), (6, 9)]
    with CacheWriter(tmp_path, identity_of(lm, config.capture)) as writer:
        done = collect_rollouts(lm, prompts, config, writer)
        assert next(done) == 1
        with pytest.raises(NonFiniteError, match=r"in row 0 after token 2 of 2.*layers\.1"):
            next(done)
    hook.remove()
    with CacheWriter(tmp_path, identity_of(lm, config.capture)) as writer:
        finished = sorted(path.name for path in tmp_path.glob("*00000*"))
        before = [(tmp_path / name).stat().st_mtime_ns for name in finished]
        assert list(collect_rollouts(lm, prompts, config, writer)) == [1, 1]
        assert [(tmp_path / name).stat().st_mtime_ns for name in finished] == before
    assert len(finished) == 1
