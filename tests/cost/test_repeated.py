"""Blocks that repeat run once, and the count is that of all of them."""

import pytest
import torch
from torch import nn

from tests.cost.dims import FAMILIES, config_of, counts_of
from tests.cost.inputs import synthetic_inputs
from vlmbench.cost.flop_counting import count_generate, text_inputs
from vlmbench.cost.repeated_blocks import NotAlike, repeated_once
from vlmbench.models.weightless import ghost_of_config


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_count_of_every_block(name):
    """Image and text, prefill and three steps, to the unit; so many layers that those with two kinds have both."""
    config = config_of(name, 7 if name.startswith(("gemma", "llama")) else 3)
    model = ghost_of_config(config)
    for inputs in (synthetic_inputs(config, counts_of(name)), text_inputs(config, 9)):
        once = count_generate(model, inputs, new_tokens=4)
        assert once == count_generate(model, inputs, new_tokens=4, every_block=True)
    assert not [path for path, module in model.named_modules() if "forward" in vars(module)]


class Book:
    """Counts what ran."""

    place = ("language_model", 1)

    def __init__(self):
        self.credited = []

    def watched(self, call):
        return call(), "booked"

    def credit(self, booked):
        self.credited.append(booked)


class Block(nn.Module):
    def __init__(self, layer_idx, width=4, window=None):
        super().__init__()
        self.layer_idx, self.window = layer_idx, window
        self.inner = nn.Linear(width, width, device="meta")
        self.ran = 0

    def forward(self, x, mask=None):
        self.ran += 1
        return self.inner(x)


class Stack(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, masks=None, skip=()):
        for index, block in enumerate(self.blocks):
            if index not in skip:
                x = block(x, mask=masks[index] if masks else None)
        return x


@pytest.fixture
def x():
    return torch.empty(2, 4, device="meta")


def ran(stack):
    return [block.ran for block in stack.blocks]


def test_alike_blocks_run_once_a_forward(x):
    stack, book = Stack(*(Block(i) for i in range(5))), Book()
    with repeated_once(stack, book):
        assert stack(x).shape == (2, 4)
        stack(x)
    assert ran(stack) == [2, 0, 0, 0, 0]
    assert book.credited == ["booked"] * 8
    stack(x)
    assert ran(stack) == [3, 1, 1, 1, 1], "as before, afterwards"


def test_other_attributes_are_other_blocks(x):
    stack = Stack(Block(0, window=8), Block(1), Block(2, window=8), Block(3))
    with repeated_once(stack, Book()):
        stack(x)
    assert ran(stack) == [1, 1, 0, 0]


def test_other_masks_are_other_calls(x):
    stack = Stack(*(Block(i) for i in range(4)))
    full, none = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    with repeated_once(stack, Book()):
        stack(x, masks=[full, none, full.clone(), none])
    assert ran(stack) == [1, 1, 0, 0]


def test_a_short_list_is_left_alone(x):
    stack = Stack(Block(0), Block(1))
    with repeated_once(stack, Book()):
        stack(x)
    assert ran(stack) == [1, 1]


def test_a_credited_block_that_must_run_is_noticed(x):
    """Its cache would be empty."""
    stack = Stack(*(Block(i) for i in range(3)))
    same, other = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    with repeated_once(stack, Book()):
        stack(x, masks=[same, same, same])
        with pytest.raises(NotAlike, match="block 2"):
            stack(x, masks=[same, same, other])


@pytest.mark.parametrize("more", [0, 1])
def test_a_block_that_a_later_forward_leaves_out_is_noticed(x, more):
    stack = Stack(*(Block(i) for i in range(4)))

    def run():
        with repeated_once(stack, Book()):
            stack(x)
            stack(x, skip=(3,))
            for _ in range(more):
                stack(x)

    with pytest.raises(NotAlike, match=r"\[3\]"):
        run()
    assert "forward" not in vars(stack.blocks[0])


def test_a_block_of_two_lists_is_run(x):
    stack = Stack(*(Block(i) for i in range(3)))
    stack.again = nn.ModuleList(stack.blocks)
    with repeated_once(stack, Book()):
        stack(x)
    assert ran(stack) == [1, 0, 0]
    assert "forward" not in vars(stack.blocks[0])
