from __future__ import annotations

import pytest
from data_tokenizers import CHATML, TRIMMED, WORDY, byte_level, word_level

from tdistill.data import DataConfig, response_end_id
from tdistill.data.chat import ChatTemplate
from tdistill.data.formats import PromptRecord
from tdistill.data.making import make_examples
from tdistill.data.tokens import (
    encode_prompts,
    encode_rendered,
    encode_responses,
    splits_special_tokens,
    turn_end,
)
from tdistill.errors import DataError, ModelError

ENDS = "{{ '<|im_stop|>' if loop.last and message['role'] == 'assistant' else '<|im_end|>' }}"
ANSWER = "William Shakespeare wrote the play."


def one(tokenizer, template, references=(ANSWER,), **config):
    record = PromptRecord("f:1", "Who wrote the play?", references, False)
    (outcome,) = make_examples(tokenizer, template, [record], DataConfig(**config))
    assert outcome.example is not None
    return outcome.example


def test_the_end_of_a_turn_is_what_the_template_writes():
    tokenizer = byte_level(CHATML)
    assert response_end_id(tokenizer, "chat") == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert response_end_id(tokenizer, "plain") == tokenizer.eos_token_id
    assert response_end_id(tokenizer, "alpaca") == tokenizer.eos_token_id


def test_a_template_without_control_token_after_the_response_ends_with_the_end_token():
    tokenizer = byte_level(WORDY)
    assert response_end_id(tokenizer, "chat") == tokenizer.eos_token_id


def test_an_added_white_space_token_does_not_end_a_turn():
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "\n\n<|im_end|>"))
    tokenizer.add_tokens(["\t", "\n\n"])
    assert response_end_id(tokenizer, "chat") == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_tokenizer_without_end_token_is_refused():
    with pytest.raises(ModelError, match=r"Set tokenizer\.eos_token"):
        response_end_id(word_level(end=None), "plain")


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(template):
    tokenizer = byte_level(template)
    example = one(tokenizer, "chat")
    turns = [
        {"role": "user", "content": "Who wrote the play?"},
        {"role": "assistant", "content": ANSWER},
    ]
    whole = encode_rendered(tokenizer, ChatTemplate(tokenizer).render(turns, prompt=False))
    line_feed = encode_rendered(tokenizer, "\n")
    assert [*example.prompt_ids, *example.reference_ids, *line_feed] == whole


def test_the_response_is_stripped_only_where_the_template_strips_it():
    spaced = f" {ANSWER}\n"
    stripped = one(byte_level(TRIMMED), "chat", (spaced,))
    assert stripped.reference_ids == one(byte_level(TRIMMED), "chat").reference_ids
    tokenizer = byte_level(CHATML)
    kept = one(tokenizer, "chat", (spaced,))
    assert tokenizer.decode(list(kept.reference_ids[:-1])) == spaced
    assert kept.references == (spaced,)


def test_a_response_that_fills_the_limit_without_its_end_is_cut():
    tokenizer = byte_level(CHATML)
    whole = one(tokenizer, "chat").reference_ids
    fits = one(tokenizer, "chat", max_response_tokens=len(whole))
    assert (fits.reference_ids, fits.reference_ended) == (whole, True)
    cut = one(tokenizer, "chat", max_response_tokens=len(whole) - 1)
    assert (cut.reference_ids, cut.reference_ended) == (whole[:-1], False)


def test_no_reference_has_no_tokens_and_no_end():
    example = one(byte_level(CHATML), "chat", ())
    assert (example.reference_ids, example.reference_ended) == ((), False)


def test_special_tokens_in_a_response_are_plain_text():
    tokenizer = byte_level(CHATML)
    text = "Stop <|im_start|> now<|endoftext|>, please"
    example = one(tokenizer, "chat", (text,))
    assert not set(example.reference_ids[:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(list(example.reference_ids[:-1])) == text
    assert splits_special_tokens(tokenizer)
    assert not splits_special_tokens(word_level())


def test_special_tokens_in_prompts_follow_the_template():
    tokenizer = byte_level(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in encode_prompts(tokenizer, "alpaca", ["a<|im_end|>b"])[0]
    assert end in encode_prompts(tokenizer, "plain", ["a<|im_end|>b"])[0]
    # Reading text as plain once does not change how the next text is read.
    encode_responses(tokenizer, ["a<|im_end|>b"])
    assert end in encode_prompts(tokenizer, "chat", ["a<|im_end|>b"])[0]


def test_a_prompt_gets_the_start_token_but_no_end_token():
    tokenizer = word_level()
    (ids,) = encode_prompts(tokenizer, "plain", ["Who wrote"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "Who", "wrote"]
    (row,) = encode_responses(tokenizer, ["the play"])
    assert tokenizer.convert_ids_to_tokens(row) == ["the", "play"]
    assert encode_responses(tokenizer, []) == []


@pytest.mark.parametrize(
    ("template", "end", "trained"),
    [
        # Two control tokens in a row end a turn: the last of them, the first is said before it.
        (
            CHATML.replace("<|im_end|>", "<|im_close|><|im_end|>"),
            "<|im_end|>",
            "Yes.<|im_close|><|im_end|>",
        ),
        # The end of the whole conversation is not the end of a turn.
        (
            CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
            "<|im_end|>",
            "Yes.<|im_end|>",
        ),
        # The last turn ends otherwise than the others.
        (
            CHATML.replace("<|im_end|>", ENDS),
            "<|im_stop|>",
            "Yes.<|im_stop|>",
        ),
        # Nothing ends a turn but the next one.
        (CHATML.replace("<|im_end|>\n", ""), "<|im_start|>", "Yes.<|im_start|>"),
        # Words end a turn, and then the tokenizer's own end token.
        (CHATML.replace("<|im_end|>", " over"), "<|endoftext|>", "Yes. over<|endoftext|>"),
    ],
)
def test_templates_end_turns_in_many_ways(template, end, trained):
    tokenizer = byte_level(template)
    names = [f"<|im_{name}|>" for name in ("start", "end", "close", "stop")]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    assert response_end_id(tokenizer, "chat") == tokenizer.convert_tokens_to_ids(end)
    example = one(tokenizer, "chat", ("Yes.",))
    assert tokenizer.decode(list(example.reference_ids)) == trained
    assert example.reference_ended


def test_the_end_token_of_the_tokenizer_wins_in_a_row_of_two():
    template = CHATML.replace("<|im_end|>", "<|endoftext|><|im_end|>")
    tokenizer = byte_level(template)
    assert response_end_id(tokenizer, "chat") == tokenizer.eos_token_id
    assert turn_end(tokenizer, "chat").written


def test_templates_without_a_default_end_turns_alike():
    tokenizer = byte_level()
    tokenizer.chat_template = {"rag": CHATML, "plain": CHATML}
    assert response_end_id(tokenizer, "chat") == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_start_token_ends_no_turn():
    template = CHATML.replace("<|im_end|>\n", "").replace("<|im_start|>", "<|endoftext|>")
    tokenizer = byte_level(template, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    end = turn_end(tokenizer, "chat")
    assert (end.id, end.written) == (tokenizer.eos_token_id, False)


@pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
def test_an_end_token_inside_a_response_is_an_error_and_at_its_end_is_its_end(template):
    tokenizer = byte_level(CHATML)
    end = "<|im_end|>" if template == "chat" else "<|endoftext|>"
    bare = one(tokenizer, template, ("He did.",))
    for text in (f"He did.{end}", f"He did.{end}\n", f"He did.{end}{end}"):
        written = one(tokenizer, template, (text,))
        assert (written.reference_ids, written.references) == (bare.reference_ids, ("He did.",))
    with pytest.raises(DataError, match=r"f:1: expected a response that ends with its end token"):
        one(tokenizer, template, (f"He did.{end} And more.",))


def test_an_end_token_that_cannot_be_split_is_an_error_too():
    with pytest.raises(DataError, match="f:1: expected a response that ends with its end token"):
        one(word_level(), "plain", ("wrote </s> the",))
    tokenizer = word_level()
    tokenizer.chat_template = "{% for m in messages %}<s> {{ m.content }} <unk> {% endfor %}"
    with pytest.raises(DataError, match=r"f:1: expected a response without an end token inside"):
        one(tokenizer, "chat", ("wrote </s> the",))
