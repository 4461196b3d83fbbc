from __future__ import annotations

import warnings

import pytest
import torch
from heads import Allocations
from torch import Tensor, nn

from tdistill.models.head import GATHERED, SPARSE, RowProducts, dense_gradient, set_scores
from tdistill.models.head.row_products import gathered_dot, gathered_sum, sparse_dot, sparse_sum

PRODUCTS = [GATHERED, SPARSE]
T, D, V = 9, 5, 30


def ragged(generator: torch.Generator, dtype: torch.dtype = torch.float64):
    """Hidden states, weight, ids and steps; sizes from 0 to 12, one step without members at each
    end, and tokens that occur often and twice in one step."""
    sizes = torch.tensor([0, 1, 12, 3, 0, 7, 1, 4, 0])
    step = torch.arange(T).repeat_interleave(sizes)
    ids = torch.randint(V // 3, (len(step),), generator=generator) * 2
    ids[2] = ids[1]
    hidden = torch.randn(T, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), ids, step


def plain(hidden: Tensor, weight: Tensor, ids: Tensor, step: Tensor) -> Tensor:
    """Autograd on the readable form."""
    return (hidden[step] * weight[ids]).sum(-1)


def value_and_gradients(scores: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    slope = torch.linspace(-1, 2, len(scores), dtype=scores.dtype)
    found = torch.autograd.grad(scores, (hidden, weight), slope)
    return [scores.detach(), *(g.to_dense() for g in found)]


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("chunk", [4, 32_768])
def test_value_and_gradients_are_those_of_gather_multiply_sum(
    products: RowProducts,
    chunk: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("tdistill.models.head.row_products._MEMBER_CHUNK", chunk)
    hidden, weight, ids, step = ragged(generator)
    found = set_scores(hidden, weight, ids, step, products=products)
    expected = value_and_gradients(plain(hidden, weight, ids, step), hidden, weight)
    torch.testing.assert_close(value_and_gradients(found, hidden, weight), expected)


@pytest.mark.parametrize("products", PRODUCTS)
def test_gradcheck(products: RowProducts, generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator)

    def scores(h: Tensor, w: Tensor) -> Tensor:
        return set_scores(h, dense_gradient(w), ids, step, products=products)

    assert torch.autograd.gradcheck(scores, (hidden, weight))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("count", [0, 1])
def test_no_member_and_one_member(products: RowProducts, count: int, generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator)
    found = set_scores(hidden, weight, ids[:count], step[:count], products=products)
    expected = plain(hidden, weight, ids[:count], step[:count])
    torch.testing.assert_close(found, expected)
    slope = torch.ones_like(found)
    for_hidden, for_weight = torch.autograd.grad(found, (hidden, weight), slope)
    assert torch.equal(for_hidden.any(1).nonzero().squeeze(1), step[:count])
    assert torch.equal(for_weight.to_dense().any(1).nonzero().squeeze(1), ids[:count])


@pytest.mark.parametrize("products", PRODUCTS)
def test_no_steps(products: RowProducts):
    none = torch.zeros(0, dtype=torch.long)
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.ones(V, D, requires_grad=True)
    found = set_scores(hidden, weight, none, none, products=products)
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("products", PRODUCTS)
def test_no_less_accurate_than_the_plain_form(
    products: RowProducts, mixed: bool, dtype: torch.dtype, generator: torch.Generator
):
    steps, width, vocabulary = 200, 64, 50
    step = torch.arange(steps).repeat_interleave(20)
    ids = torch.randint(vocabulary, (len(step),), generator=generator)
    h = torch.randn(steps, width, generator=generator).to(dtype)
    w = torch.randn(vocabulary, width, generator=generator).to(dtype)
    w = w.float() if mixed else w
    errors = {}
    for name in ("truth", "fast", "plain"):
        wide = torch.float64 if name == "truth" else None
        hidden, weight = (t.to(wide or t.dtype).requires_grad_() for t in (h, w))
        if name == "fast":
            scores = set_scores(hidden, weight, ids, step, products=products)
            assert scores.dtype == torch.float32
        else:
            scores = plain(hidden, weight, ids, step)
        errors[name] = value_and_gradients(scores, hidden, weight)
    truth = errors.pop("truth")
    of = {
        name: [float((a.double() - b).norm()) for a, b in zip(found, truth, strict=True)]
        for name, found in errors.items()
    }
    assert all(f <= 1.05 * p for f, p in zip(of["fast"], of["plain"], strict=True)), of


def test_autocast_keeps_the_products_in_float32(generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator, torch.float32)
    expected = value_and_gradients(set_scores(hidden, weight, ids, step), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = set_scores(hidden, weight, ids, step)
    found = value_and_gradients(scores, hidden, weight)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_gradient_of_the_weight_is_sparse_and_coalesced(generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator)
    (found,) = torch.autograd.grad(set_scores(hidden, weight, ids, step).sum(), weight)
    assert found.is_sparse and found.is_coalesced()
    assert torch.equal(found.indices()[0], ids.unique())


@pytest.mark.parametrize("tied", [False, True])
def test_with_and_without_the_gradient_of_an_input_embedding(
    tied: bool, generator: torch.Generator
):
    _, weight, ids, step = ragged(generator)
    layer = nn.Embedding(V, D, _weight=weight.detach().clone())
    tokens = torch.randint(V, (T,), generator=generator)

    def gradient(scores: object) -> Tensor:
        layer.zero_grad()
        hidden = layer(tokens) if tied else weight.detach()[tokens]
        rows = layer.weight if tied or scores is plain else dense_gradient(layer.weight)
        for _ in range(2):  # read twice, as set members and actions are
            scores(hidden, rows, ids, step).sin().sum().backward(retain_graph=True)
        assert layer.weight.grad is not None and not layer.weight.grad.is_sparse
        return layer.weight.grad.clone()

    torch.testing.assert_close(gradient(set_scores), gradient(plain))


def test_sparse_gradients_of_several_readings_become_one_dense_buffer(
    generator: torch.Generator,
):
    hidden, weight, ids, step = ragged(generator)
    rows = dense_gradient(weight)
    loss = set_scores(hidden, rows, ids, step).sum() + set_scores(hidden, rows, ids, step).sum()
    with Allocations() as made:
        loss.backward()
    assert made.sizes.count(V * D) == 1
    expected = torch.autograd.grad(2 * plain(hidden, weight, ids, step).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


def test_a_tied_embedding_needs_no_second_buffer(generator: torch.Generator):
    _, weight, ids, step = ragged(generator)
    layer = nn.Embedding(V, D, _weight=weight.data.clone())
    tokens = torch.randint(V, (T,), generator=generator)
    loss = set_scores(layer(tokens), layer.weight, ids, step).sum()
    # A profiler, since the engine adds in place only where no dispatch mode looks on.
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        loss.backward()
    events = [e for e in profile.function_events or () if [V, D] in e.input_shapes]
    inside = {e.name: e.cpu_parent.name for e in events if e.cpu_parent is not None}
    assert "aten::add_" in inside and "aten::to_dense" not in inside
    assert inside["aten::add"] == "aten::add_"  # in place


def test_no_tensor_of_members_times_width_exists():
    steps, width, vocabulary, each = 64, 16, 100, 40
    step = torch.arange(steps).repeat_interleave(each)
    ids = torch.arange(len(step)) % vocabulary
    hidden, weight = torch.randn(steps, width), torch.randn(vocabulary, width)
    hidden.requires_grad_(), weight.requires_grad_()
    largest = {}
    for name, scores in (("sets", set_scores), ("plain", plain)):
        with Allocations() as made:
            scores(hidden, weight, ids, step).sum().backward()
        largest[name] = made.largest
    assert largest["plain"] == len(ids) * width
    assert largest["sets"] == len(ids) > max(steps, vocabulary) * width


@pytest.mark.parametrize(
    ("ids", "step", "message"),
    [
        ([V], [0], f"ids: expected at least 0 and below {V}, found {V} to {V}"),
        ([3, -1], [0, 0], "ids: expected at least 0 .* found -1 to 3"),
        ([3], [T], f"step: expected at least 0 and below {T}, found {T}"),
    ],
)
def test_tokens_and_steps_that_do_not_exist_are_refused(
    ids: list[int], step: list[int], message: str, generator: torch.Generator
):
    hidden, weight, *_ = ragged(generator)
    with pytest.raises(IndexError, match=message):
        set_scores(hidden, weight, torch.tensor(ids), torch.tensor(step))


def test_steps_that_descend_are_refused(generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator)
    with pytest.raises(ValueError, match="step: expected steps in ascending order"):
        set_scores(hidden, weight, ids, step.flip(0))


def test_on_a_device_the_check_does_not_wait(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tdistill.models.head.row_products.waits_for", lambda tensor: True)
    hidden, weight, ids, step = ragged(generator)
    torch.testing.assert_close(
        set_scores(hidden, weight, ids, step), plain(hidden, weight, ids, step)
    )
    for wrong in ((ids + V, step), (ids, step + T), (ids, step.flip(0)), (ids - V, step)):
        with pytest.raises(RuntimeError, match="expected tokens and steps that exist"):
            set_scores(hidden, weight, *wrong)


def test_the_products_alone(generator: torch.Generator):
    hidden, weight, ids, step = ragged(generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), step.bincount(minlength=T).cumsum(0)])
    with torch.no_grad():
        expected = plain(hidden, weight, ids, step)
        torch.testing.assert_close(gathered_dot(hidden, weight, ids, offsets), expected)
        torch.testing.assert_close(sparse_dot(hidden, weight, ids, offsets), expected)
        rows = torch.stack(
            [(expected[step == t, None] * weight[ids[step == t]]).sum(0) for t in range(T)]
        )
        torch.testing.assert_close(gathered_sum(expected, ids, offsets, weight), rows)
        torch.testing.assert_close(sparse_sum(expected, ids, offsets, weight), rows)


def test_no_warning_reaches_the_user():
    import subprocess
    import sys

    code = (
        "import torch\nfrom tdistill.models.head import set_scores\none = torch.tensor([0])\n"
        "print(set_scores(torch.ones(1, 2), torch.ones(1, 2), one, one).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("[2.0]\n", "")
    assert warnings.filters  # the filters of this process are untouched
