"""Integers are real, floats are shapes."""

import pytest
import torch

from vlmbench.models.weightless import Ghost, GhostError, ghost_inputs, is_ghost


@pytest.fixture
def ghost():
    with Ghost():
        yield


def test_integers_made_for_meta_are_real(ghost):
    positions = torch.arange(5, device="meta")
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert torch.zeros(3, dtype=torch.long, device="meta").tolist() == [0, 0, 0]
    assert torch.full((2,), 7, device="meta").tolist() == [7, 7]


def test_floats_made_for_meta_are_shapes(ghost):
    assert is_ghost(torch.zeros(3, device="meta"))
    assert is_ghost(torch.arange(3.0, device="meta"))


def test_integers_stay_real_when_moved(ghost):
    mask = torch.tensor([[True, False, True]])
    assert mask.to("meta").tolist() == [[True, False, True]]


def test_mask_selects_as_many_rows_as_it_has(ghost):
    features = torch.empty(2, 3, 4, device="meta")
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert features[mask].shape == (3, 4)
    assert features[mask.unsqueeze(-1).expand_as(features)].shape == (12,)


def test_chosen_experts_are_in_range(ghost):
    _, index = torch.topk(torch.empty(6, 8, device="meta"), 2, dim=-1)
    assert index.tolist() == [[0, 1]] * 6
    assert torch.empty(1, 100, device="meta").argmax(-1).tolist() == [0]


@pytest.mark.parametrize("pair", [((3, 1), (1, 4)), ((3, 4), (4,)), ((2, 1, 5), (3, 1))])
def test_elementwise_shapes_are_those_of_torch(ghost, pair):
    left, right = (torch.empty(s, device="meta", dtype=torch.bfloat16) for s in pair)
    result = left * right.float()
    assert result.shape == torch.broadcast_shapes(*pair)
    assert result.dtype == torch.float32
    assert (left + 1).dtype == torch.bfloat16


def test_elementwise_keeps_strides(ghost):
    turned = torch.empty(2, 3, 4, device="meta").transpose(1, 2)
    assert (turned * 2).stride() == turned.stride()


def test_value_of_an_activation_is_refused(ghost):
    with pytest.raises(GhostError, match="depends on activations"):
        torch.empty((), device="meta").item()


def test_mask_from_activations_is_made_up_empty(ghost):
    assert not (torch.empty(4, device="meta") > 0).any()


def test_unknown_values_leave_real_tensors_as_they_are(ghost):
    real = torch.tensor([1, 2, 3])
    real.copy_(torch.empty(3, device="meta"))
    assert real.tolist() == [1, 2, 3]


def test_inputs():
    got = ghost_inputs({"ids": torch.tensor([1, 2]), "pixels": torch.ones(3, 4), "flag": True, "many": [torch.ones(1)]})
    assert got["ids"].tolist() == [1, 2]
    assert is_ghost(got["pixels"])
    assert is_ghost(got["many"][0])
    assert got["flag"] is True
