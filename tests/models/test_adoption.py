"""Instruct teachers and base students: the ids agree, and the student talks as the teacher does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tdistill.errors import ModelError
from tdistill.models.adoption import adopt, check_same_tokenizer, shared_vocabulary
from tdistill.models.language_model import LanguageModel, also_end_at, load, save
from tiny import VOCABULARY, tiny_model, tokenizer

TEMPLATE = (
    "{% for m in messages %}<|user|> {{ m['content'] }} <|stop|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
STOP = VOCABULARY  # the id of <|stop|>


def words(*added: str, eos: str = "<end>", template: str | None = None) -> Any:
    """The tokenizer of the tests with further tokens."""
    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": list(added)})
    own.eos_token, own.pad_token, own.chat_template = eos, eos, template
    return own


def instruct(rows: int = VOCABULARY + 8) -> LanguageModel:
    """Its template ends turns with a token that tokenizer and generation config do not name."""
    model = tiny_model(vocab_size=rows, seed=1)
    lm = LanguageModel(model, words("<|stop|>", "<think>", template=TEMPLATE), "instruct")
    also_end_at(lm, STOP)
    return lm


def base(rows: int = VOCABULARY, *added: str) -> LanguageModel:
    return LanguageModel(tiny_model(vocab_size=rows, seed=2), words(*added, eos="two"), "base")


def test_only_what_ordinary_ids_mean_must_agree():
    for student in (base(), base(VOCABULARY + 1, "<|stop|>"), base(VOCABULARY + 8, "<other>")):
        check_same_tokenizer(instruct(), student)
    check_same_tokenizer(base(), instruct())
    assert shared_vocabulary(instruct(), base()) == VOCABULARY
    assert shared_vocabulary(instruct(), base(VOCABULARY + 8, "<other>")) == VOCABULARY + 1


def swapped() -> Any:
    own = words()
    state = own.backend_tokenizer.to_str().replace('"a":2,', '"a":3,').replace('"b":3,', '"b":2,')
    return type(own)(tokenizer_object=type(own.backend_tokenizer).from_str(state), eos_token="two")


def test_two_swapped_words_make_another_tokenizer():
    student = LanguageModel(tiny_model(), swapped(), "other")
    with pytest.raises(
        ModelError, match=r"teacher instruct has 66 tokens.*2 ids are not.*\(id 2: 'a' and 'b'\)"
    ):
        check_same_tokenizer(instruct(), student)
    with pytest.raises(ModelError, match="tokenizers differ"):
        adopt(student, instruct())


def test_an_ordinary_word_of_one_side_is_a_difference():
    more = words()
    state = more.backend_tokenizer.to_str().replace('"two":63', '"two":63,"three":64')
    own = type(more)(tokenizer_object=type(more.backend_tokenizer).from_str(state), eos_token="two")
    student = LanguageModel(tiny_model(vocab_size=72), own, "more")
    with pytest.raises(ModelError, match=r"1 ids are not the same \(id 64: none and 'three'\)"):
        check_same_tokenizer(base(), student)


def test_what_the_student_takes_is_named():
    student, changes = adopt(base(), instruct())
    assert changes == [
        "eos_token two becomes <end>",
        "pad_token two becomes <end>",
        "responses end at <end>, <|stop|>",
        "the chat template is the teacher's",
        "2 tokens that it lacks get new embeddings, the mean of the others",
    ]
    assert student.end_ids == (1, STOP)
    assert student.vocabulary_size == instruct().vocabulary_size == VOCABULARY + 2
    _, changes = adopt(base(VOCABULARY + 8, "<other>", "<think>"), instruct())
    assert "1 special tokens are renamed (<other> becomes <|stop|>)" in changes
    assert adopt(instruct(), instruct())[1] == []


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_the_mean_of_the_others_and_old_ones_stay(tied: bool):
    student = base()
    student = LanguageModel(tiny_model(tie_word_embeddings=tied), student.tokenizer, "base")
    before = [layer.weight.clone() for layer in layers(student)]
    grown, _ = adopt(student, instruct())
    for layer, old in zip(layers(grown), before, strict=True):
        assert layer.weight.shape[0] == VOCABULARY + 2
        assert torch.equal(layer.weight[:VOCABULARY], old)
        mean = old.mean(0).expand(2, -1)
        torch.testing.assert_close(layer.weight[VOCABULARY:], mean)
    assert (layers(grown)[0].weight is layers(grown)[1].weight) == tied


def layers(lm: LanguageModel) -> list[Any]:
    return [lm.model.get_input_embeddings(), lm.model.get_output_embeddings()]


@pytest.mark.filterwarnings("ignore")
def test_the_saved_student_chats_and_stops_as_the_teacher(tmp_path: Path):
    """Made to write the end of a turn, it stops there in every way that it can be used."""
    turns = [{"role": "user", "content": "a b"}]
    save(adopt(base(), instruct())[0], tmp_path / "student")
    saved = AutoTokenizer.from_pretrained(tmp_path / "student")
    expected = instruct().tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    assert saved.apply_chat_template(turns, add_generation_prompt=True) == expected
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert loaded.generation_config.eos_token_id == [1, STOP]
    assert load(tmp_path / "student").end_ids == (1, STOP)
    chat = pipeline("text-generation", model=str(tmp_path / "student"))
    stop = {"logits_processor": [force], "max_new_tokens": 9}
    made = loaded.generate(**saved(["a b"], return_tensors="pt"), do_sample=False, **stop)
    assert made[0].tolist()[-2:] == [5, STOP]
    answer = chat(turns, return_full_text=False, do_sample=False, **stop)
    assert saved.encode(answer[0]["generated_text"])[-1] == 5  # what follows it is a special token


def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Token 5, and then the end of the turn."""
    chosen = torch.full_like(scores, float("-inf"))
    chosen[:, STOP if int(ids[0, -1]) == 5 else 5] = 0.0
    return chosen
