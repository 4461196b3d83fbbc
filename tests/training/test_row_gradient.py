"""An embedding's sparse gradients in one buffer: what dense gradients would be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tdistill.training.row_gradient import RowGradient, sparse_gradient

UPDATES = [[[1, 2, 2]], [[2, 5], [0, 5]], [[3]], [[3, 3], [1], [6]]]  # micro-batches of token ids


def pair() -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(7, 3)
    other = nn.Embedding(7, 3)
    other.load_state_dict(plain.state_dict())
    return plain, other


def loss(embedding: nn.Embedding, ids: list[int], *, dense: bool) -> Tensor:
    found = embedding(torch.tensor(ids)).square().sum()
    return found + embedding.weight.sum() if dense else found  # an output layer that is tied


@pytest.mark.parametrize("dense", [(), (1,), (0, 3), (0, 1, 2, 3)])
def test_gradients_are_the_dense_ones_update_after_update(dense: tuple[int, ...]):
    plain, sparse = pair()
    with sparse_gradient(sparse) as rows:
        assert rows is not None
        for number, update in enumerate(UPDATES):
            plain.weight.grad = sparse.weight.grad = None
            for part, ids in enumerate(update):
                tied = number in dense and part == 0
                loss(plain, ids, dense=tied).backward()
                with rows.collecting():
                    loss(sparse, ids, dense=tied).backward()
            assert sparse.weight.grad is not None
            assert not sparse.weight.grad.is_sparse
            torch.testing.assert_close(sparse.weight.grad, plain.weight.grad)
            for embedding in (plain, sparse):  # as clipping does
                assert embedding.weight.grad is not None
                embedding.weight.grad.mul_(0.5)


def test_the_buffer_is_made_once_and_the_embedding_is_left_as_it_was():
    _, embedding = pair()
    places = set()
    with sparse_gradient(embedding) as rows:
        assert rows is not None
        for ids in ([1, 2], [3], [0, 6]):
            embedding.weight.grad = None
            with rows.collecting():
                loss(embedding, ids, dense=False).backward()
            assert embedding.weight.grad is not None
            places.add(embedding.weight.grad.data_ptr())
            touched = embedding.weight.grad.abs().sum(1).nonzero().squeeze(1).tolist()
            assert touched == sorted(ids)
    assert len(places) == 1
    assert not embedding.sparse


def test_a_pass_without_gradient_keeps_what_is_there():
    _, embedding = pair()
    rows = RowGradient(embedding)
    embedding.weight.grad = torch.ones(7, 3)
    with rows.collecting():
        pass
    assert torch.equal(embedding.weight.grad, torch.ones(7, 3))


def test_frozen_embeddings_and_other_modules_are_left_alone():
    _, embedding = pair()
    embedding.weight.requires_grad_(False)
    for module in (embedding, nn.Linear(3, 7), None):
        with sparse_gradient(module) as rows:
            assert rows is None
    assert not embedding.sparse
