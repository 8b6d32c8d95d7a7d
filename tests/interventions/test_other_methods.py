"""The smaller image, the early exit, the weights at lower precision: what they change, observe, refuse and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.interventions.test_dropping import attributes, hooks, model_of
from tests.models.shipped import loaded, spec
from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.downsample import Downsample
from vlmbench.interventions.early_exit import EarlyExit
from vlmbench.interventions.none import NoIntervention
from vlmbench.interventions.proof import answer
from vlmbench.interventions.quantized import Quantized, weight_bytes
from vlmbench.request import ImageSource, Output, Request, Sample


def png(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def request(width: int = 448, height: int = 448) -> Request:
    data = png(width, height)
    image = ImageSource(name="grey", read=lambda: data, size=(width, height))
    return Request(
        sample=Sample(sample_id="a", question="what?", images=(image,)), output=Output(max_new_tokens=3, forced=True)
    )


@pytest.fixture(scope="module")
def tiny() -> Any:
    return loaded(spec("tiny"), device="cpu")


def test_a_smaller_image_makes_as_many_tokens_as_a_share(tiny: Any) -> None:
    whole = tiny.prepare(request()).counts.num_vision_tokens
    for keep in (0.5, 0.25):
        asked = Downsample(keep=keep).request(request(), tiny)
        counts = tiny.prepare(asked).counts
        assert counts.num_vision_tokens == pytest.approx(keep * whole, rel=0.02)
        assert counts.num_images == 1
    asked = request()
    assert Downsample(keep=1).request(asked, tiny) is asked


def test_a_fixed_number_of_tokens_cannot_be_downsampled(tiny: Any) -> None:
    class Fixed:
        def remember(self, key: Any, find: Any) -> int:
            return 256

        def resolve(self, request: Request) -> Request:
            raise UnreachablePointError(
                "vision_tokens=128 cannot be reached within 2 % by FixedProcessor; nearest: 256"
            )

    with pytest.raises(UnreachablePointError, match=r"downsample: of 256 vision tokens, vision_tokens=128 cannot be"):
        Downsample(keep=0.5).request(request(), Fixed())


def test_none_changes_nothing(tiny: Any) -> None:
    none = NoIntervention()
    asked = request()
    assert none.request(asked, tiny) is asked
    attachment = none.attach(tiny)
    attachment.begin(tiny.prepare(asked))
    assert attachment.values(3) == {}
    attachment.detach()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "smolvlm"])
def test_an_early_exit_runs_the_first_layers_and_puts_the_others_back(family: str) -> None:
    model = model_of(family)
    before, baseline = attributes(model.module), answer(model, model.prepared(), 4)
    attachment = EarlyExit(depth=0.5).attach(model)
    attachment.begin(model.prepared())
    early = answer(model, model.prepared(), 4)
    assert attachment.values(4) == {"num_decoder_layers_run": 3}
    attachment.detach()
    assert hooks(model.module) == 0
    assert attributes(model.module) == before
    assert answer(model, model.prepared(), 4).same(baseline)
    assert not early.same(baseline)


def test_an_exit_after_all_layers_is_the_baseline() -> None:
    model = model_of("llava")
    baseline = answer(model, model.prepared(), 4)
    attachment = EarlyExit(depth=1).attach(model)
    attachment.begin(model.prepared())
    assert answer(model, model.prepared(), 4).same(baseline)
    attachment.detach()


def test_an_exit_that_did_not_happen_is_an_error() -> None:
    model = model_of("llava")
    attachment = EarlyExit(depth=0.5).attach(model)
    attachment.begin(model.prepared())
    with pytest.raises(MeasurementError, match="0 decoder layers hold keys where 3 should have run"):
        attachment.values(4)
    attachment.detach()


def test_what_a_compiled_decode_cannot_change() -> None:
    model = model_of("llava")
    model.compile = True
    for method in (EarlyExit(depth=0.5), Quantized()):
        with pytest.raises(UnreachablePointError, match="compiled decode"):
            method.attach(model)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else real(name))
    with pytest.raises(UnreachablePointError, match=r"needs the package torchao, which is not installed"):
        Quantized(kind="torchao_int8").attach(model_of("smolvlm"))


@pytest.mark.parametrize("kind", ["bitsandbytes_8bit", "bitsandbytes_4bit"])
@pytest.mark.filterwarnings("ignore")
def test_weights_at_lower_precision_take_fewer_bytes_and_are_swapped_back(kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = model_of("llava")
    language = model.module.get_submodule(model.anatomy.language_model[0])
    vision = model.module.get_submodule(model.anatomy.vision_encoder[0])
    before, bytes_before = attributes(model.module), (weight_bytes(language), weight_bytes(vision))
    baseline = answer(model, model.prepared(), 4)
    attachment = Quantized(kind=kind).attach(model)
    attachment.begin(model.prepared())
    quantised = answer(model, model.prepared(), 4)
    values = attachment.values(4)
    attachment.detach()
    assert values["precision_language_model"] == kind
    assert values["precision_vision_encoder"] == "as loaded"
    assert values["weight_bytes_language_model"] < bytes_before[0]
    assert values["weight_bytes_vision_encoder"] == bytes_before[1]
    assert attributes(model.module) == before
    assert answer(model, model.prepared(), 4).same(baseline)
    assert not torch.equal(quantised.logits, baseline.logits)


def test_bytes_of_plain_weights() -> None:
    layer = torch.nn.Linear(8, 4).to(torch.bfloat16)
    assert weight_bytes(layer) == 2 * (8 * 4 + 4)
