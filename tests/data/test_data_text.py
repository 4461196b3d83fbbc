from __future__ import annotations

import json

import pytest
from data_tokenizers import byte_level, word_level

from tdistill.data import check_text_source, load_text_chunks
from tdistill.errors import DataError

TOKENIZER = byte_level()


def join(chunks):
    return TOKENIZER.decode([token for chunk in chunks for token in chunk])


def test_a_file_is_cut_into_equal_chunks_and_the_rest_left_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("William Shakespeare wrote the play. " * 5)
    chunks = load_text_chunks(path, TOKENIZER, 7)
    assert {len(chunk) for chunk in chunks} == {7}
    total = len(TOKENIZER(path.read_text())["input_ids"]) + 1
    assert len(chunks) == total // 7
    assert path.read_text().startswith(join(chunks)[:100])


def test_documents_are_closed_by_the_end_token_and_blank_ones_left_out(tmp_path):
    for name, text in [("b.txt", "two"), ("a.txt", "one"), ("c.txt", " \n"), ("d.md", "no")]:
        (tmp_path / name).write_text(text)
    expected = "one<|endoftext|>two<|endoftext|>"
    assert join(load_text_chunks(tmp_path, TOKENIZER, 1)) == expected
    assert join(load_text_chunks(str(tmp_path / "*.txt"), TOKENIZER, 1)) == expected
    assert join(load_text_chunks(tmp_path / "*.md", TOKENIZER, 1)) == "no<|endoftext|>"


def test_rows_with_a_text_column(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one"}, {"text": None}, {"text": "t<|endoftext|>"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chunks = load_text_chunks(path, TOKENIZER, 1)
    assert join(chunks) == "one<|endoftext|>t<|endoftext|><|endoftext|>"
    # Only what closes a document is a control token; what the text spells is not.
    assert sum(chunk == (TOKENIZER.eos_token_id,) for chunk in chunks) == 2


def test_without_end_token_documents_follow_each_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("wrote the play")
    tokenizer = word_level(end=None)
    (chunk,) = load_text_chunks(path, tokenizer, 3)
    assert tokenizer.convert_ids_to_tokens(list(chunk)) == ["wrote", "the", "play"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one", "expected text for at least one chunk of 50 tokens"),
        ("a.jsonl", '{"prompt": "a"}\n', ":1: expected a column text"),
        ("a.jsonl", '{"text": 3}\n', ":1, column text: expected text; found a number"),
        ("a.jsonl", '{"text": "\\ud800"}\n', ":1, column text: expected text that UTF-8 can hold"),
    ],
)
def test_unusable_text_is_refused(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_text_chunks(path, TOKENIZER, 50)
    assert expected in str(caught.value)


def test_missing_text_and_bad_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing at"):
        load_text_chunks(tmp_path / "a.txt", TOKENIZER, 5)
    with pytest.raises(DataError, match=r"expected \.txt files"):
        load_text_chunks(tmp_path, TOKENIZER, 5)
    with pytest.raises(DataError, match="at least 1 token"):
        load_text_chunks(tmp_path, TOKENIZER, 0)


def test_files_of_a_pattern_may_be_rows(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    chunks = load_text_chunks(f"{tmp_path}/**/*.jsonl", TOKENIZER, 1)
    assert join(chunks) == "a<|endoftext|>b<|endoftext|>"


def test_a_source_is_looked_at_before_it_is_needed(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"data\.lm_text: expected text in .*a\.txt; found none"):
        check_text_source(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"data\.lm_text: .*found nothing at"):
        check_text_source(str(tmp_path / "b.txt"))
    (tmp_path / "b.txt").write_text("b")
    check_text_source(str(tmp_path))
