"""Axes, points and the requests they make."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.sweep import Axis, Sweep, shuffled, spaced
from vlmbench.testing.planted import request


def test_points_are_the_product_in_grid_order() -> None:
    sweep = Sweep(name="s", axes={"vision_tokens": [1, 2], "output_tokens": [3, 4]})
    assert [p.id for p in sweep.points()] == [
        "vision_tokens=1,output_tokens=3",
        "vision_tokens=1,output_tokens=4",
        "vision_tokens=2,output_tokens=3",
        "vision_tokens=2,output_tokens=4",
    ]
    assert len(sweep) == 4


def test_no_axes_make_one_single_point() -> None:
    (point,) = Sweep(name="none").points()
    assert point.id == "single"
    base = request()
    assert point.apply(base) == base


@pytest.mark.parametrize(
    ("axis", "value", "field", "expected"),
    [
        ("vision_tokens", 64, "vision_tokens", 64),
        ("resolution", 224, "image_size", (224, 224)),
        ("image_width", 32, "image_size", (32, 32)),
        ("images", 3, "num_images", 3),
        ("prompt_tokens", 9, "prompt_tokens", 9),
        ("batch_size", 4, "batch_size", 4),
        ("processor.max_pixels", 1000, "processor_kwargs", {"max_pixels": 1000}),
    ],
)
def test_each_axis_turns_its_knob(axis: str, value: int, field: str, expected: Any) -> None:
    (point,) = Sweep(name="s", axes={axis: [value]}).points()
    base = request()
    turned = point.apply(base)
    assert getattr(turned, field) == expected
    assert turned.sample == base.sample


def test_width_and_height_are_independent() -> None:
    (point,) = Sweep(name="s", axes={"image_width": [30], "image_height": [40]}).points()
    assert point.apply(request()).image_size == (30, 40)


def test_output_tokens_are_forced() -> None:
    (point,) = Sweep(name="s", axes={"output_tokens": [5]}).points()
    output = point.apply(request()).output
    assert (output.max_new_tokens, output.forced) == (5, True)


def test_images_are_repeated_cyclically() -> None:
    (point,) = Sweep(name="s", axes={"images": [3]}).points()
    images = point.apply(request()).images
    assert [i.name for i in images] == ["image/0"] * 3


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"visoin_tokens": [1]}, "must be one of vision_tokens"),
        ({"vision_tokens": []}, "has no values"),
        ({"vision_tokens": [0]}, "must be a whole number of 1 or more"),
        ({"batch_size": [2, 1, 2]}, "has 2 twice; give each value once"),
        ({"processor.crop": [0, 0]}, "has 0 twice"),
        ({"vision_tokens": [True]}, "must be a whole number"),
        ({"vision_tokens": ["64"]}, "must be a whole number"),
        ({"vision_tokens": 5}, "must be a list or a range"),
        ({"vision_tokens": {"start": 1}}, "needs 'start', 'stop' and one of"),
        ({"vision_tokens": {"start": 1, "stop": 5, "step": 1, "num": 2}}, "one of 'step', 'num'"),
        ({"vision_tokens": {"start": 5, "stop": 1, "step": 1}}, "must not be below"),
        ({"vision_tokens": {"start": 1, "stop": 5, "step": 0}}, "'step' must be 1 or more"),
        ({"vision_tokens": {"start": 0, "stop": 5, "num": 2, "spacing": "log"}}, "'start' of 1 or more"),
        ({"vision_tokens": {"start": 1, "stop": 5, "num": 2, "spacing": "cubic"}}, "must be linear or log"),
        ({"vision_tokens": {"start": 1, "stop": 5, "stride": 2}}, "got also"),
        ({"vision_tokens": "auto(2)"}, "N of 3 or more"),
        ({"vision_tokens": "automatic"}, r"or auto, auto\(N\)"),
        ({"output_tokens": "auto"}, "only axis 'vision_tokens' can be auto"),
        ({"vision_tokens": "auto", "images": [1, 2]}, "cannot be auto beside images"),
        ({"vision_tokens": "auto", "processor.max_pixels": [9]}, "cannot be auto beside processor.max_pixels"),
        ({"vision_tokens": "auto", "output_tokens": [0]}, "axis 'output_tokens' must be"),
        ({"vision_tokens": {"start": 1.5, "stop": 5, "num": 2}}, "'start' of a range must be a whole number"),
    ],
)
def test_bad_axes_are_refused_with_what_is_allowed(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(name="s", axes=axes)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("log(64, 2048, 6)", {"start": 64, "stop": 2048, "num": 6, "spacing": "log"}),
        ("linear(0,100,5)", {"start": 0, "stop": 100, "num": 5}),
        (" range(8, 64, 8) ", {"start": 8, "stop": 64, "step": 8}),
    ],
)
def test_ranges_in_short_are_ranges(short: str, long: dict[str, Any]) -> None:
    assert Axis.parse("images", short).values == tuple(spaced(long))


@pytest.mark.parametrize("text", ["log(64, 2048)", "cubic(1, 2, 3)", "64", "log(a, b, c)"])
def test_other_words_are_no_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"log\(start, stop, num\)"):
        Axis.parse("images", text)


@pytest.mark.parametrize(("spec", "points"), [("auto", 6), ("auto(3)", 3), (" auto( 12 ) ", 12), ([64], None)])
def test_auto_says_how_many_and_is_filled_with_what_was_found(spec: Any, points: int | None) -> None:
    sweep = Sweep(name="s", axes={"vision_tokens": spec, "output_tokens": [8, 32]})
    assert sweep.auto == points
    if points is not None:
        with pytest.raises(ValueError, match="must be a list or a range"):
            list(sweep.points())
        sweep = sweep.found([576])
    assert [p.target["output_tokens"] for p in sweep.points()] == [8, 32]
    assert sweep.auto is None


@given(start=st.integers(1, 5000), span=st.integers(0, 5000), num=st.integers(2, 40))
def test_log_spacing_keeps_both_ends_and_grows(start: int, span: int, num: int) -> None:
    values = spaced({"start": start, "stop": start + span, "num": num, "spacing": "log"})
    assert values[0] == start
    assert values[-1] == start + span
    assert values == sorted(set(values))
    assert len(values) <= num


@given(start=st.integers(0, 100), span=st.integers(0, 100), step=st.integers(1, 30))
def test_steps_are_equal(start: int, span: int, step: int) -> None:
    values = spaced({"start": start, "stop": start + span, "step": step})
    assert len(values) == math.floor(span / step) + 1
    assert all(b - a == step for a, b in itertools.pairwise(values))


@given(st.lists(st.integers(), max_size=30), st.integers(0, 5), st.integers(0, 5))
def test_a_rounds_order_is_a_permutation_and_repeats(items: list[int], seed: int, index: int) -> None:
    once = shuffled(items, seed=seed, round_index=index)
    assert sorted(once) == sorted(items)
    assert once == shuffled(items, seed=seed, round_index=index)
