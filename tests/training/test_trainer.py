from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from tdistill.errors import ModelError
from tdistill.evidence.collator import Collator
from tdistill.evidence.rows import Row
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tdistill.training import trainer as trainer_module
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import (
    KD,
    LSIQ,
    SFT,
    SQIL,
    BellmanDistill,
    IQLearn,
    SeqKD,
    Views,
)
from tiny import FAMILIES, VOCABULARY, tiny_lm, tiny_model
from world import (
    END,
    PAPER,
    Dense,
    inside_rows,
    live,
    make_batch,
    make_trainer,
    mixed_rows,
    model_view,
    own_rows,
    student,
)

PLAIN = replace(PAPER, shift="raw", alpha=10.0)
EXACT = replace(PLAIN, normaliser="vocabulary")
TEXT = tuple(tuple((7 * i + 3 * j) % VOCABULARY for j in range(6)) for i in range(5))


class Gradients(TrainerCallback):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.updates.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def same(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    close = {"rtol": tolerance, "atol": tolerance, "check_device": False}
    torch.testing.assert_close(one, two, **close)


def train(folder: Path, objective: Any, **options: Any) -> tuple[Any, list[dict[str, Tensor]]]:
    """A run and the gradients of its updates, not clipped."""
    kept = Gradients()
    trainer = make_trainer(folder, objective, callbacks=[kept], max_grad_norm=1e9, **options)
    trainer.train()
    return trainer, kept.updates


def loss_and_gradients(trainer: Any, rows: list[Row]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = trainer.data_collator(list(enumerate(rows)))
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.zero_grad()
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("text", [(), TEXT], ids=["rows", "rows and text"])
@pytest.mark.parametrize("objective", [EXACT, replace(PLAIN, out_of_set="drop"), KD()])
def test_batch_8x1_is_1x8_and_the_global_token_mean(
    objective: Any, text: Any, tmp_path: Path
) -> None:
    rows = [*inside_rows(6), *mixed_rows()[-2:]]
    assert len({len(row.response_ids) for row in rows}) > 3  # uneven
    objective = replace(objective, lm_weight=0.3)
    options: dict[str, Any] = {"rows": rows, "steps": 1, "text": text}
    runs = [
        train(tmp_path, objective, gradient_accumulation=n, seed=4, **options) for n in (1, 4, 8)
    ]
    first = runs[0][0].state.log_history[0]
    for trainer, gradients in runs[1:]:
        same(gradients, runs[0][1])
        for name in ("loss", "step_loss", "grad_norm", "implied_reward", "value", "set_kl"):
            assert trainer.state.log_history[0][name] == pytest.approx(first[name], rel=1e-5)
    model = student()
    loss = direct_loss(model, objective, rows, text)
    loss.backward()
    same(runs[0][1][0], {n: p.grad for n, p in model.named_parameters()})
    assert first["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


ONLINE = IQLearn(second_term="online", student_share=0.5, alpha=5.0)


@pytest.mark.parametrize(
    "objective",
    [ONLINE, SQIL(), pytest.param(LSIQ(absorbing=False), marks=pytest.mark.slow)],
    ids=lambda o: o.name,
)
def test_weights_between_sources_are_those_of_the_whole_update(
    objective: Any, tmp_path: Path
) -> None:
    """After two updates: micro-batches of one row each hold one source alone."""
    rows = [row for pair in zip(inside_rows(8), own_rows(8), strict=True) for row in pair]
    options: dict[str, Any] = {"rows": rows, "steps": 2, "seed": 4, "learning_rate": 1e-2}
    changes: list[dict[str, Any]] = [
        {},
        {"gradient_accumulation": 8},
        {"gradient_accumulation": 2, "tokens_per_forward": 12},
        {"tokens_per_forward": 1},
    ]
    runs = [train(tmp_path, objective, **options, **change)[0] for change in changes]
    expected = runs[0].model.state_dict()
    start = student().state_dict()
    assert any((w.cpu() - start[n]).abs().max() > 1e-3 for n, w in expected.items())
    for trainer in runs[1:]:
        for name, weight in trainer.model.state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
        for one, two in zip(trainer.state.log_history, runs[0].state.log_history, strict=False):
            if "step_loss" in one:
                assert one["step_loss"] == pytest.approx(two["step_loss"], rel=1e-3)


def direct_loss(model: Any, objective: Any, rows: list[Row], text: Any) -> Tensor:
    """One mean over all trained steps, plus the weighted one over all text tokens."""
    batch = make_batch(rows, out_of_set=objective.out_of_set, set_top_p=objective.set_top_p)
    steps = objective.loss(Views(model_view(model, batch)), batch).loss
    loss = steps[batch.trained].mean()
    if text:
        ids = torch.tensor([text[i % len(text)] for i in range(len(rows))])
        loss = loss + objective.lm_weight * model(input_ids=ids, labels=ids).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_does_not_depend_on_the_padding_side(family: str, tmp_path: Path) -> None:
    found = []
    for side in ("right", "left"):
        model = tiny_model(family, seed=2)
        trainer = make_trainer(tmp_path, EXACT, model=model, padding_side=side)
        found.append(loss_and_gradients(trainer, mixed_rows()))
    same(found[0], found[1], 1e-4)
    batch = trainer.data_collator(list(enumerate(mixed_rows())))
    assert not batch.layout.attention_mask[:, 0].all()  # it was padded, on the left


def test_the_padding_id_changes_nothing_and_the_end_token_is_trained(tmp_path: Path) -> None:
    rows = mixed_rows()
    trainer = make_trainer(tmp_path, EXACT)
    expected = loss_and_gradients(trainer, rows)
    assert trainer.data_collator.pad_id == END
    batch = trainer.data_collator(list(enumerate(rows)))
    ends = (batch.action == END) & (batch.transitions.discount == 0.0)
    assert (ends & batch.trained).any()
    assert len(batch.action) == int(batch.trained.sum()) == sum(len(r.response_ids) for r in rows)
    trainer.data_collator = replace(trainer.data_collator, pad_id=0)
    same(loss_and_gradients(trainer, rows), expected)


def test_logged_means_are_over_the_steps_of_the_whole_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100))
    clock = SimpleNamespace(perf_counter=lambda: 0.5 * next(ticks))
    monkeypatch.setattr(trainer_module, "time", clock)
    rows = [*mixed_rows(), *inside_rows(16)[6:]]
    options = {"rows": rows, "text": TEXT, "batch_size": 8, "gradient_accumulation": 4}
    still = {"learning_rate": 1e-12, "logging_steps": 2, "steps": 4}
    objective = replace(EXACT, out_of_set="drop", successor="semi")
    trainer = make_trainer(tmp_path, objective, **options, **still)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    batch, model = make_batch(rows, out_of_set="drop"), student()
    with torch.no_grad():
        view = model_view(model, batch)
        logits = view.scores.rows(0, len(batch.action)).double()
        loss = objective.loss(Views(view), batch)
        ids = torch.tensor([TEXT[i % 5] for i in range(16)])
        text_loss = float(model(input_ids=ids, labels=ids).loss)
    dense, trained = Dense.of(batch), batch.trained
    linked = trained & batch.transitions.can_bootstrap
    assert int(linked.sum()) < int(trained.sum()) < len(trained)
    value = dense.on_set(logits)
    reward = (logits * dense.action).sum(1) - batch.transitions.discount * dense.following(
        value, batch
    )
    ours = logits.masked_fill(~dense.inside, float("-inf")).log_softmax(1)
    divergence = torch.where(dense.inside, dense.policy * (dense.policy.log() - ours), 0.0).sum(1)
    expected = {
        "step_loss": loss.loss[trained].mean(),
        "linear": loss.parts["linear"][trained].mean(),
        "nonlinear": loss.parts["nonlinear"][linked].mean(),
        "implied_reward": reward[linked].mean(),
        "value": value[trained].mean(),
        "set_kl": divergence[trained].mean(),
        "leak": (logits.softmax(1) * ~dense.inside).sum(1)[trained].mean(),
        "out_of_set": batch.out_of_set.double().mean(),
        "text_loss": text_loss,
        "tokens_per_second": int(trained.sum()) / 0.5,
    }
    for name, mean in expected.items():
        assert first[name] == pytest.approx(float(mean), rel=1e-4), name
        assert second[name] == pytest.approx(first[name], rel=1e-4), name  # began anew
    assert first["grad_norm"] > 0.0


def test_objectives_without_sets_log_no_set_quantities(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, SFT(), steps=1)
    trainer.data_collator = replace(trainer.data_collator, source=None)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert {"loss", "step_loss", "grad_norm", "tokens_per_second"} <= set(logs)
    assert not {"leak", "set_kl", "value", "out_of_set"} & set(logs)


def test_live_kd_is_given_the_full_teacher(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, KD(support="vocabulary"), live_teacher=live())
    found, _ = loss_and_gradients(trainer, mixed_rows())
    batch = make_batch()
    scores = live().scores(batch.layout)
    view = model_view(student(), batch)
    objective = KD(support="vocabulary")
    expected = objective.loss(Views(view, teacher=scores), batch).loss.mean().detach()
    same(found, expected)


class Largest(TorchDispatchMode):
    """Notes the largest dense tensor that any operation returns, backward included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        sizes = [t.numel() for t in made if t.layout == torch.strided]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize(
    ("objective", "head", "limit"),
    [
        (PLAIN, "auto", None),
        (EXACT, "auto", None),
        (BellmanDistill(), "auto", None),
        (SeqKD(), "auto", None),
        (PLAIN, "full", 200 * 5000),
    ],
    ids=["set", "vocabulary", "default", "seqkd", "full head"],
)
def test_no_tensor_over_steps_and_vocabulary(
    objective: Any, head: str, limit: int | None, tmp_path: Path
) -> None:
    vocabulary, chunk = 5000, 32  # of which a chunk's logits are twice the weights of the layer
    wide = LiveTeacher(
        tiny_lm("llama", vocab_size=vocabulary),
        CaptureConfig(captured_top_p=0.5, max_set_size=16),
        vocabulary_size=vocabulary,
    )
    rows = [Row((i, 9), tuple(range(i, 50 + i)), ended=True) for i in range(4)]
    model = student(vocab_size=vocabulary)
    trainer = make_trainer(tmp_path, objective, model=model, head=head, chunk_size=chunk)
    trainer.vocabulary_size = vocabulary
    batch = Collator(wide, END)(list(enumerate(rows)))
    assert len(batch.action) == 200
    with Largest() as largest:
        trainer.compute_loss(model, batch).backward()
    if limit is None:
        assert largest.elements <= chunk * vocabulary
        assert largest.elements >= vocabulary * 16  # the gradient of the output layer was seen
    else:  # the same measure sees full logits where they do exist
        assert largest.elements >= limit


def test_gradient_checkpointing_recomputes_and_gives_the_same(tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        model, calls = student(), []
        model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        options = {"model": model, "gradient_checkpointing": checkpointing, "steps": 1}
        runs.append((*train(tmp_path, EXACT, **options), len(calls)))
    same(runs[0][1], runs[1][1])
    assert runs[0][0].state.log_history[0]["loss"] == runs[1][0].state.log_history[0]["loss"]
    assert runs[1][2] == runs[0][2] + 1


@pytest.mark.parametrize("head", ["auto", "full"])
def test_bf16_computes_in_bf16_and_keeps_fp32_weights(head: str, tmp_path: Path) -> None:
    model, seen = student(), []
    layer = model.get_submodule("model.layers.0.mlp")
    exact = train(tmp_path, EXACT, steps=1, head=head)[0].state.log_history[0]
    layer.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    trainer, _ = train(tmp_path, EXACT, model=model, bf16=True, steps=1, head=head)
    found = trainer.state.log_history[0]
    assert seen[-1] == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name in ("loss", "implied_reward", "value", "set_kl", "leak", "grad_norm"):
        assert found[name] == pytest.approx(exact[name], rel=0.02), name
    assert found["loss"] != exact["loss"]


# peft itself reads a property that transformers has renamed.
OLD_PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def adapted(**options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    return get_peft_model(student(), config)


@OLD_PEFT
def test_lora_trains_the_adapters_and_nothing_else(tmp_path: Path) -> None:
    model = adapted(target_modules="all-linear")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, gradients = train(tmp_path, PLAIN, model=model)
    assert set(gradients[0]) == {n for n in before if "lora_" in n}
    assert all(g.abs().sum() > 0 for g in gradients[1].values())
    for name, weight in model.named_parameters():
        assert weight.equal(before[name]) != ("lora_" in name), name


@OLD_PEFT
def test_lora_on_the_output_layer_falls_back_to_full_logits_with_a_notice(tmp_path: Path) -> None:
    model = adapted(target_modules=["lm_head", "q_proj"])
    with pytest.warns(UserWarning, match="not a plain linear map; scores come from full logits"):
        trainer = make_trainer(tmp_path, SFT(), model=model)
    row = mixed_rows()[0]
    loss, gradients = loss_and_gradients(trainer, [row])
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    labels = ids.clone()
    labels[0, : len(row.prompt_ids)] = -100
    same(loss, model(input_ids=ids, labels=labels).loss.detach())
    assert any("lm_head.lora_A" in name for name in gradients)


@pytest.mark.parametrize("head", ["auto", "full"])
def test_a_head_that_is_not_what_it_looks_like_is_read_in_full(tmp_path: Path, head: str) -> None:
    model = student()
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: 1.5 * out)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = make_trainer(tmp_path, SFT(), model=model, head=head)
    assert any("scores come from full logits" in str(w.message) for w in said) == (head == "auto")
    refused = pytest.raises(ModelError, match=r"set training\.head to auto or full")
    with warnings.catch_warnings(action="ignore"), refused:
        make_trainer(tmp_path, SFT(), model=model, head="linear")
    row = mixed_rows()[0]
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    labels = ids.clone()
    labels[0, : len(row.prompt_ids)] = -100
    same(loss_and_gradients(trainer, [row])[0], model(input_ids=ids, labels=labels).loss.detach())


def test_tensorboard_gets_the_logged_quantities(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, PLAIN, report_to=("tensorboard",))
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    for name in ("loss", "leak", "implied_reward", "tokens_per_second"):
        logged = [entry[name] for entry in trainer.state.log_history if name in entry]
        found = [event.value for event in events.Scalars(f"train/{name}")]
        assert found == pytest.approx(logged)


def test_the_configuration_is_what_the_run_used(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PLAIN, chunk_size=7)
    assert trainer.config == TrainConfig(
        steps=2, batch_size=8, warmup_steps=1, learning_rate=1e-3, chunk_size=7
    )
