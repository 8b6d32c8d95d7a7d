"""Offline processors are transformers' own classes: they make the published numbers of tokens."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.models.shipped import NAMES, processor_only, request, spec
from vlmbench.errors import ModelError, SampleError, UnreachablePointError
from vlmbench.models import processors
from vlmbench.models.inputs import Prompter

NEEDS_TORCHVISION = ("molmo2_4b", "molmo2_8b")
# One of each processor; the larger siblings share it.
FAMILIES = (
    "tiny",
    "llava_1_5_7b",
    "llava_v1_6_mistral_7b",
    "llava_onevision_qwen2_0_5b",
    "qwen2_vl_2b",
    "qwen2_5_vl_3b",
    "qwen3_vl_2b",
    "internvl3_1b",
    "smolvlm_256m",
    "smolvlm_2_2b",
    "smolvlm2_2_2b",
    "idefics3_8b",
    "paligemma2_3b_224",
    "gemma3_4b",
    "llama_3_2_11b_vision",
    "llama_3_2_11b_vision_instruct",
    "molmoe_1b",
)


# Some processors of transformers still treat tensors as arrays the old way; 5.17 renames an argument of Mllama.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*hidden_state:FutureWarning"),
]
# One tile instead of thirteen, where the number of tiles is not the question.
ONE_TILE = {"processor_kwargs": {"do_image_splitting": False}}


def cheap(name: str) -> dict:
    return ONE_TILE if name.startswith(("smolvlm", "idefics")) else {}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, processor_only(request.param)


def test_a_640x480_image(family):
    name, model = family
    prepared = model.prepare(request())
    counts = prepared.counts
    expected = spec(name).vision_tokens_640x480
    assert expected is None or counts.num_vision_tokens == expected
    assert counts.num_images == 1
    assert counts.num_prompt_tokens in (6, 7)  # five words and a question mark; a leading space may stand alone
    assert counts.num_input_tokens >= counts.num_vision_tokens + counts.num_prompt_tokens
    assert prepared.inputs["input_ids"].shape == (1, counts.num_input_tokens)
    if counts.num_vision_tokens == 0:
        assert counts.num_cross_attention_tokens


def test_two_images_and_a_batch(family):
    name, model = family
    one = model.prepare(request(size=(300, 200), **cheap(name))).counts
    if name.startswith("molmo"):
        with pytest.raises(UnreachablePointError, match="one image"):
            model.prepare(request(size=(300, 200), images=2))
        return
    two = model.prepare(request(size=(300, 200), images=2, batch_size=2, **cheap(name)))
    assert two.inputs["input_ids"].shape[0] == 2
    assert two.counts.num_images == 2
    if name.startswith("llava_onevision"):
        assert two.counts.num_vision_tokens == 2 * 730
    else:
        assert two.counts.num_vision_tokens == 2 * one.num_vision_tokens
        assert two.counts.num_vision_patches == 2 * one.num_vision_patches


def test_prompt_tokens_are_exact_and_ordinary(family):
    name, model = family
    tokenizer = model.processor.tokenizer
    texts = set()
    for count in (1, 7, 100):
        wanted = request(size=(64, 64), prompt_tokens=count, seed=3, **cheap(name))
        text = model.resolve(wanted).sample.question
        assert not set(tokenizer(text, add_special_tokens=False).input_ids) & set(tokenizer.all_special_ids)
        assert model.prompter.text_tokens(text, num_images=1) == count
        texts |= {text, model.resolve(replace(wanted, seed=4)).sample.question}
    assert len(texts) >= 5
    base = model.prepare(request(size=(64, 64), question="", **cheap(name))).counts
    seen = model.prepare(wanted).counts
    assert seen.num_prompt_tokens == 100
    # One more where a template's trailing newlines are one token alone and two before a word.
    assert seen.num_input_tokens - base.num_input_tokens in (100, 101)


def test_no_image(family):
    name, model = family
    if name.startswith("paligemma"):
        with pytest.raises(UnreachablePointError, match="without images"):
            model.prepare(request(images=0))
    else:
        assert model.prepare(request(images=0)).counts.num_vision_tokens == 0


def test_an_argument_that_the_processor_does_not_have(family):
    _, model = family
    with pytest.raises(UnreachablePointError, match="no argument wibble"):
        model.prepare(request(processor_kwargs={"wibble": 3}))


def test_an_argument_that_it_has():
    model = processor_only("smolvlm_256m")
    assert model.prepare(request(processor_kwargs={"do_image_splitting": False})).counts.num_vision_tokens == 64


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_pixels": 50_000},
        {"min_pixels": 400_000},
        {"min_pixels": 20_000, "max_pixels": 30_000},
        {"max_pixels": 50_000, "size": {"shortest_edge": 40_000, "longest_edge": 90_000}},
    ],
)
@pytest.mark.parametrize("name", ["tiny", "qwen3_vl_2b"])
def test_bounds_of_pixels_are_given_as_the_processor_wants_them(name, bounds):
    """No warning in each request, which is an error here; and as many tokens as transformers makes of them."""
    model = processor_only(name)
    asked = request(size=(400, 300), processor_kwargs=bounds)
    seen = model.prepare(asked).inputs["pixel_values"]
    given = Image.open(io.BytesIO(asked.images[0].encoded()))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        theirs = model.processor.image_processor([given], return_tensors="pt", **bounds)["pixel_values"]
    assert seen.shape == theirs.shape
    assert seen.equal(theirs)
    assert asked.processor_kwargs == bounds, "what is asked for is stored as it was asked for"


def test_bounds_of_a_processor_that_keeps_them_by_name_are_left_as_they_are():
    asked = {"max_pixels": 5, "do_resize": True}
    assert processors.call_arguments(SimpleNamespace(image_processor=SimpleNamespace(size={})), asked) == asked


def test_an_image_of_one_pixel(family):
    _, model = family
    try:
        seen = model.prepare(request(size=(1, 1))).counts.num_images
    except SampleError as error:
        seen = str(error)
    assert seen == 1 or "1x1" in str(seen)


def test_back_end_is_known(family):
    name, model = family
    expected = {"pil", "torchvision"} if not name.startswith("molmo") else {"pil", "torchvision", "other"}
    assert processors.backend_of(model.processor) in expected


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FAMILIES and n not in NEEDS_TORCHVISION])
def test_siblings_prepare(name):
    counts = processor_only(name).prepare(request()).counts
    expected = spec(name).vision_tokens_640x480
    assert expected is None or counts.num_vision_tokens == expected


@pytest.mark.parametrize("name", NEEDS_TORCHVISION)
def test_torchvision_is_named_where_it_is_missing(name):
    if processors.torchvision_available():
        assert processor_only(name).prepare(request()).counts.num_vision_tokens > 0
    else:
        with pytest.raises(ModelError, match=r"torchvision|no architecture"):
            processor_only(name)


def test_pil_can_be_asked_for():
    assert processors.image_processor_class("CLIPImageProcessor", "pil").__name__ == "CLIPImageProcessorPil"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wibble": 1}, "unknown keys"),
        ({"class": "WibbleProcessor"}, "no class 'WibbleProcessor'"),
        ({"class": "os.path"}, r"vlmbench\.\*"),
        ({"image_processor_class": "WibbleImageProcessor"}, "no image processor"),
        ({"backend": "gpu"}, "'processor.backend' must be one of"),
        ({"arguments": {"wibble": 1}}, r"\['wibble'\], which Qwen2_5_VLProcessor does not take"),
        ({"tokenizer": {"special_tokens": {}, "roles": {"image_token": "<image>"}}}, "<image>"),
    ],
)
def test_errors_of_the_yaml(change, message):
    fields = {**spec("tiny").processor, **change}
    with pytest.raises(ModelError, match=message):
        processors.build_processor(fields, model_type="qwen2_5_vl", vocab_size=8192)


def test_a_foreign_processor_is_refused():
    llava = processor_only("llava_1_5_7b").processor
    with pytest.raises(ModelError, match=r"LlavaProcessor.*does not belong.*Qwen2_5_VLProcessor"):
        processors.check_processor(llava, model_type="qwen2_5_vl", source="folder")
    with pytest.raises(ModelError, match="does not process images and text"):
        processors.check_processor(llava.tokenizer, model_type="llava", source="folder")


def test_a_broken_chat_template_is_named():
    tokenizer = processor_only("tiny").processor.tokenizer
    with pytest.raises(ModelError, match="chat template"):
        Prompter(tokenizer=tokenizer, chat_template="{{ wibble.wobble.web }}").render("x", num_images=1)


def test_a_prompt_format_without_a_chat_template():
    tokenizer = processor_only("tiny").processor.tokenizer
    prompter = Prompter(
        tokenizer=tokenizer, chat_template=None, prompt_format="{images}Q {text}", image_placeholder="@"
    )
    assert prompter.render("why?", num_images=2) == "@@Q why?"
