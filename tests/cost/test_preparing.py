"""What is remembered of pictures and texts changes nothing: inputs and counts are those of the full preparation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.shipped import processor_only, request
from vlmbench.cost.planning import Preparer
from vlmbench.errors import ModelError, SampleError, UnreachablePointError

pytestmark = [  # transformers' own
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*hidden_state:FutureWarning"),
]

# Expansion by grid, by tiles, by crops; delimiters of images, rows and tiles; fixed counts; cross-attention; own code.
FAMILIES = (
    "gemma3_4b",
    "idefics3_8b",
    "internvl3_1b",
    "llama_3_2_11b_vision",
    "llava_1_5_7b",
    "llava_onevision_qwen2_0_5b",
    "llava_v1_6_mistral_7b",
    "molmo2_4b",
    "molmo_7b_d",
    "paligemma2_3b_224",
    "qwen2_5_vl_72b",
    "qwen3_vl_2b",
    "smolvlm_256m",
    "tiny",
)


def grid():
    """Two sizes, two texts, and none to two images; each met twice."""
    one = request(size=(640, 427))
    return [
        replace(one, image_size=size, prompt_tokens=tokens, num_images=images)
        for _ in range(2)
        for size in (None, (900, 300))
        for tokens in (None, 40)
        for images in (1, 2, 0)
    ]


def outcome(prepare, wanted):
    try:
        return prepare(wanted)
    except (SampleError, UnreachablePointError) as error:
        return type(error), str(error)


def assert_same(got, wanted):
    if isinstance(wanted, tuple):
        assert got == wanted
        return
    assert got.counts == wanted.counts
    assert got.inputs.keys() == wanted.inputs.keys()
    for name, value in wanted.inputs.items():
        if isinstance(value, torch.Tensor):
            assert got.inputs[name].dtype == value.dtype, name
            assert torch.equal(got.inputs[name], value), name
        else:
            assert str(got.inputs[name]) == str(value), name


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_full_preparation(name):
    try:
        model = processor_only(name)
    except ModelError as error:  # a processor that runs on torchvision only, or is not in this release
        pytest.skip(str(error))
    preparer = Preparer(model)
    for wanted in grid():
        assert_same(outcome(preparer.prepare, wanted), outcome(model.prepare, wanted))


@pytest.fixture(scope="module")
def tiny():
    return processor_only("tiny")


@pytest.fixture(scope="module")
def tiny_preparer(tiny):
    return Preparer(tiny)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(28, 300), st.integers(28, 300)) | st.none(),
    text=st.text(max_size=30),
    images=st.integers(0, 3),
    batch=st.integers(1, 3),
)
def test_any_request_of_the_tiny_model(tiny, tiny_preparer, size, text, images, batch):
    wanted = request(size=(120, 90), question=text, image_size=size, num_images=images, batch_size=batch)
    assert_same(outcome(tiny_preparer.prepare, wanted), outcome(tiny.prepare, wanted))


def test_targets_are_reached_alike(tiny, tiny_preparer):
    wanted = request(vision_tokens=36, prompt_tokens=11)
    assert_same(tiny_preparer.prepare(wanted), tiny.prepare(wanted))


def counted(model, monkeypatch):
    """Calls of the image processor's own code."""
    calls = []
    real = type(model.processor.image_processor).preprocess
    monkeypatch.setattr(
        type(model.processor.image_processor),
        "preprocess",
        lambda self, images, *a, **k: calls.append(images) or real(self, images, *a, **k),
    )
    return calls


def test_a_picture_is_worked_on_once(tiny, monkeypatch):
    calls, preparer = counted(tiny, monkeypatch), Preparer(tiny)
    for tokens in range(1, 9):
        for size in ((112, 56), (56, 56)):
            preparer.prepare(request(image_size=size, prompt_tokens=tokens))
    assert len(calls) == 2
    preparer.prepare(request(image_size=(56, 56), processor_kwargs={"do_normalize": False}))
    assert len(calls) == 3, "other arguments, other pixels"


@pytest.mark.parametrize("kept_bytes", [0, 4 * 56 * 56])
def test_what_does_not_fit_is_made_again(tiny, monkeypatch, kept_bytes):
    calls, preparer = counted(tiny, monkeypatch), Preparer(tiny, kept_bytes=kept_bytes)
    wanted = request(image_size=(56, 56))
    for _ in range(3):
        assert_same(preparer.prepare(wanted), tiny.prepare(wanted))
    assert len(calls) == 6


def test_the_model_is_left_alone(tiny):
    parts = [tiny.processor, tiny.processor.image_processor]
    before = [(id(part), type(part), repr(part)) for part in parts]
    Preparer(tiny).prepare(request())
    assert [(id(part), type(part), repr(part)) for part in (tiny.processor, tiny.processor.image_processor)] == before
