"""Batches: what each step knows, whatever side the padding is on and whoever shares the batch."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from tdistill.core import TopPSets, offsets_of
from tdistill.errors import DataError
from tdistill.evidence.batch import Batch
from tdistill.evidence.collator import Collator, OutOfSet, insert_actions, outside_set
from tdistill.evidence.evidence import Evidence, concatenate
from tdistill.evidence.rows import Row
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_lm, tokenizer

END = 1
ENDED = Row((3, 4), (7, 8, END), ended=True)
CUT = Row((5,), (9, 10), ended=False)
SHORT = Row((6, 6, 6), (END,), ended=True)
ROWS = [ENDED, CUT, SHORT]


class Script:
    """A teacher whose evidence is written down: one set a step, as probabilities."""

    def __init__(self, sets: dict[Row, list[dict[int, float]]]) -> None:
        self.sets, self.asked = sets, []

    def evidence(self, rows: Any, *, set_top_p: float | None = None) -> Evidence:
        self.asked.append(set_top_p)
        return concatenate([self._of(row) for row in rows])

    def _of(self, row: Row) -> Evidence:
        steps = self.sets[row]
        sizes = torch.tensor([len(step) for step in steps])
        sets = TopPSets(
            torch.tensor([token for step in steps for token in step]),
            torch.tensor([p for step in steps for p in step.values()]).log(),
            offsets_of(sizes),
        )
        action = torch.linspace(-7.0, -8.0, len(steps))
        return Evidence(sets, torch.arange(len(steps)).float() + row.prompt_ids[0], action)


def script() -> Script:
    """Token 8 of the first row and the end token of the third are outside their sets."""
    return Script(
        {
            ENDED: [{7: 0.6, 2: 0.3}, {2: 0.9}, {END: 0.5, 7: 0.25, 8: 0.125}],
            CUT: [{9: 0.8}, {11: 0.5, 10: 0.4}],
            SHORT: [{7: 0.9}],
        }
    )


def collate(rows: list[Row], **options: Any) -> Batch:
    chosen: dict[str, Any] = {"source": script(), "pad_id": END, "discount": 0.9}
    return Collator(**(chosen | options))(list(enumerate(rows)))


def test_discounts_and_successors_of_ended_and_cut_rows():
    batch = collate(ROWS)
    torch.testing.assert_close(
        batch.transitions.discount, torch.tensor([0.9, 0.9, 0.0, 0.9, 0.9, 0.0])
    )
    assert batch.transitions.has_successor.tolist() == [True, True, False, True, False, False]
    assert batch.transitions.can_bootstrap.tolist() == [True, True, True, True, False, True]
    assert batch.action.tolist() == [7, 8, END, 9, 10, END]
    assert batch.row.tolist() == [0, 0, 0, 1, 1, 2]


def test_the_end_token_is_a_trained_step_though_it_pads():
    assert tokenizer().pad_token_id == tokenizer().eos_token_id == END
    batch = collate(ROWS)
    ends = batch.action == END
    assert batch.trained.all()
    assert ends.sum() == 2
    assert (batch.transitions.discount[ends] == 0.0).all()
    other = collate(ROWS, pad_id=0)
    for name, tensor in batch.named_tensors().items():
        assert name == "layout.input_ids" or torch.equal(tensor, other.named_tensors()[name])


def test_whether_a_row_ended_is_not_read_off_its_tokens():
    """A cut row may finish with a token that ends other models' responses, and the reverse."""
    cut_at_end = replace(ENDED, ended=False)
    ended_elsewhere = replace(CUT, ended=True)
    batch = collate([cut_at_end, ended_elsewhere], source=None)
    torch.testing.assert_close(batch.transitions.discount, torch.tensor([0.9, 0.9, 0.9, 0.9, 0.0]))
    assert batch.transitions.can_bootstrap.tolist() == [True, True, False, True, True]


def test_actions_outside_their_set_are_inserted():
    batch = collate(ROWS, out_of_set="insert")
    assert batch.out_of_set.tolist() == [False, True, False, False, False, True]
    assert batch.trained.all()
    assert batch.sets.sizes.tolist() == [2, 2, 3, 1, 2, 2]
    ids, log_probs = batch.sets.row(1)
    assert ids.tolist() == [2, 8]
    torch.testing.assert_close(log_probs, torch.tensor([0.9, 0.0]).log().nan_to_num(neginf=-7.5))
    ids, log_probs = batch.sets.row(5)
    assert ids.tolist() == [7, END]
    assert log_probs[1] == -7.0
    assert not outside_set(batch.sets, batch.action).any()
    for t in (0, 2, 3, 4):  # the others are as the teacher gave them
        assert (
            batch.sets.row(t)[0].tolist()
            == collate(ROWS, out_of_set="drop").sets.row(t)[0].tolist()
        )


def test_actions_outside_their_set_are_dropped():
    batch = collate(ROWS, out_of_set="drop")
    assert batch.trained.tolist() == [True, False, True, True, True, False]
    assert batch.out_of_set.tolist() == [False, True, False, False, False, True]
    assert batch.sets.sizes.tolist() == [2, 1, 3, 1, 2, 1]
    torch.testing.assert_close(batch.transitions.discount, collate(ROWS).transitions.discount)


def test_actions_outside_their_set_are_refused():
    text = r"found 2 of 6 outside in this batch \(first: token 8 at step 1\); set out_of_set"
    with pytest.raises(DataError, match=text):
        collate(ROWS, out_of_set="refuse")
    inside = collate([CUT], out_of_set="refuse")
    assert inside.sets.sizes.tolist() == [1, 2]
    assert not inside.out_of_set.any()


@pytest.mark.parametrize(("rows", "rate"), [(ROWS, 2 / 6), ([CUT], 0.0), ([SHORT, CUT], 1 / 3)])
def test_the_rate_of_actions_outside_is_of_all_steps(rows: list[Row], rate: float):
    for choice in ("insert", "drop"):
        batch = collate(rows, out_of_set=choice)
        assert batch.out_of_set.float().mean() == pytest.approx(rate)
        trained = 1.0 if choice == "insert" else 1.0 - rate
        assert batch.trained.float().mean() == pytest.approx(trained)


def test_the_mass_of_the_sets_is_asked_of_the_source():
    source = script()
    collate(ROWS, source=source, set_top_p=0.7)
    collate(ROWS, source=source)
    assert source.asked == [0.7, None]


@pytest.mark.parametrize("choice", ["insert", "drop", "refuse"])
def test_without_a_teacher_nothing_is_outside(choice: OutOfSet):
    batch = collate(ROWS, source=None, out_of_set=choice)
    assert not batch.has_sets
    assert collate(ROWS).has_sets
    assert batch.sets.sizes.tolist() == [0] * 6
    assert batch.trained.all()
    assert not batch.out_of_set.any()
    assert batch.teacher_log_normaliser.tolist() == [0.0] * 6


def steps_of(batch: Batch, rows: list[Row]) -> dict[Row, list[Any]]:
    """What each row's steps know, apart from where they are in the batch."""
    found: dict[Row, list[Any]] = {}
    links, layout = batch.transitions, batch.layout
    known = [links.discount, links.has_successor, links.can_bootstrap]
    tensors = [batch.action, *known, batch.trained, batch.out_of_set]
    for t, b in enumerate(batch.row.tolist()):
        real = layout.attention_mask[b].bool()
        before = real[: int(layout.position[t]) + 1]
        seen = layout.input_ids[b, : len(before)][before].tolist()
        ids, log_probs = batch.sets.row(t)
        facts = [tensor[t].item() for tensor in tensors]
        normaliser = round(batch.teacher_log_normaliser[t].item(), 4)
        found.setdefault(rows[b], []).append([seen, ids.tolist(), *facts, normaliser, log_probs])
    return found


def same(found: dict[Row, list[Any]], expected: dict[Row, list[Any]]) -> None:
    assert found.keys() == expected.keys()
    for row, steps in expected.items():
        for a, b in zip(found[row], steps, strict=True):
            assert a[:-1] == b[:-1]
            torch.testing.assert_close(a[-1], b[-1], atol=1e-5, rtol=2.0**-10)


@pytest.mark.parametrize("choice", ["insert", "drop"])
def test_padding_side_and_batch_order_change_no_step(choice: OutOfSet):
    rows = [*ROWS, Row((20, 21, 22, 23), (30, 31, 32, 33, 34), False), Row((2,), (50, END), True)]
    live = LiveTeacher(tiny_lm(seed=1), CaptureConfig(0.8, None))

    def steps(rows: list[Row], side: Literal["left", "right"]) -> dict[Row, list[Any]]:
        batch = collate(rows, source=live, padding_side=side, out_of_set=choice)
        return steps_of(batch, rows)

    expected: dict[Row, list[Any]] = {}
    for row in rows:
        expected |= steps([row], "right")
    outside = [step[7] for known in expected.values() for step in known]
    assert 0 < sum(outside) < len(outside)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 1]):
        chosen = [rows[i] for i in order]
        wanted = {row: expected[row] for row in chosen}
        same(steps(chosen, "right"), wanted)
        same(steps(chosen, "left"), wanted)


def test_a_step_sees_the_prompt_and_the_actions_before_it():
    for side in ("right", "left"):
        known = steps_of(collate(ROWS, padding_side=side), ROWS)
        assert [step[0] for step in known[ENDED]] == [[3, 4], [3, 4, 7], [3, 4, 7, 8]]
        assert [step[0] for step in known[SHORT]] == [[6, 6, 6]]


def test_padding_is_on_the_side_asked_for():
    masks = [collate(ROWS, padding_side=side).layout.attention_mask for side in ("right", "left")]
    assert masks[0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert masks[1].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]


def test_text_is_chosen_by_the_index_of_the_row():
    text = [(10, 11), (12, 13), (14, 15)]
    make = Collator(source=None, pad_id=END, text=text)
    items = [(4, ENDED), (0, CUT), (2, SHORT)]
    assert make(items).text_ids.tolist() == [[12, 13], [10, 11], [14, 15]]
    assert make(items[::-1]).text_ids.tolist() == [[14, 15], [10, 11], [12, 13]]


def test_a_batch_moves_and_is_pickled_as_a_whole():
    rows = [ENDED, replace(ENDED, response_ids=(7, END))]
    batch = collate(rows, source=None, share_prefix=True)
    assert batch.layout.sharing is not None
    assert batch.text_ids is None
    tensors = batch.named_tensors()
    assert {"action", "layout.sharing.segment", "sets.ids", "transitions.discount"} <= set(tensors)
    for other in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        found = other.named_tensors()
        assert found.keys() == tensors.keys()
        assert all(found[name].equal(tensors[name]) for name in tensors)
    away = batch.to("meta").named_tensors()
    assert away.keys() == tensors.keys()
    assert all(tensor.is_meta for tensor in away.values())


def test_insertion_keeps_the_members_and_their_order():
    sets = TopPSets(
        torch.tensor([4, 7, 5, 9]),
        torch.tensor([-0.1, -3.0, -1.0, -2.0]),
        torch.tensor([0, 2, 2, 4]),
    )
    action, where = torch.tensor([8, 6, 3]), torch.tensor([True, True, False])
    found = insert_actions(sets, action, torch.tensor([-5.0, -6.0, -7.0]), where)
    assert found.ids.tolist() == [4, 7, 8, 6, 5, 9]
    torch.testing.assert_close(found.log_probs, torch.tensor([-0.1, -3.0, -5.0, -6.0, -1.0, -2.0]))
    assert found.offsets.tolist() == [0, 3, 4, 6]
