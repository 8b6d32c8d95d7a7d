"""Dry runs: the model's own processor, no weights."""

import copy
import io
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

import vlmbench.cost.decoder_formula
from tests.models.shipped import NAMES
from vlmbench.cost.bytes import Parameters
from vlmbench.cost.planning import Planner, Preparer
from vlmbench.cost.run_costs import Costs
from vlmbench.cost.stage_costs import ClosedFormError
from vlmbench.errors import ModelError, UnreachablePointError
from vlmbench.machine.peaks import table_peaks
from vlmbench.models.loading import weightless
from vlmbench.models.spec import ModelSpec
from vlmbench.models.weight_bytes import in_memory
from vlmbench.request import ImageSource, Output, Request, Sample

CONF = Path(__file__).parents[2] / "conf" / "model"
H200 = table_peaks("NVIDIA H200", "bfloat16")


def spec_of(name):
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    fields.pop("_target_")
    return ModelSpec(**fields)


def encoded():
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), (90, 120, 40)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = encoded()


def picture():
    return ImageSource(name="picture", read=lambda: PICTURE, size=(640, 480))


def request(output=16, **more):
    sample = Sample(sample_id="one", question="What is on the table?", images=(picture(),))
    return Request(sample=sample, output=Output(max_new_tokens=output, forced=True), **more)


@pytest.fixture(scope="module")
def tiny():
    return weightless(spec_of("tiny"))


def test_nothing_has_weights(tiny):
    assert all(p.device.type == "meta" for p in tiny.module.parameters())


def test_plan_equals_count(tiny):
    planner = Planner(tiny, peaks=H200)
    point = planner.plan(request(batch_size=2))
    prepared = tiny.prepare(request(batch_size=2))
    assert point.counts == prepared.counts
    costs = Costs(tiny.module.config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy)
    row = costs.columns(prepared.inputs, prepared.counts, output_tokens=16, batch_size=2)
    assert row["flops_total"] == point.flops.total
    assert row["bytes_total"] == point.bytes.total
    assert row["floor_ms_total"] == pytest.approx(point.floor_ms)


def test_quantised_weights_that_are_not_loaded_get_flops_but_no_floor(tiny):
    prepared = tiny.prepare(request())
    config = copy.deepcopy(tiny.module.config)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    costs = Costs(config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy)
    row = costs.columns(prepared.inputs, prepared.counts, output_tokens=16)
    plain = Costs(tiny.module.config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy)
    assert row["flops_total"] == plain.columns(prepared.inputs, prepared.counts, output_tokens=16)["flops_total"]
    assert not [name for name in row if name.startswith(("bytes_", "floor_", "verdict_"))]
    assert "quantised" in row["flops_note"]
    assert costs.peaks.peaks is None


def test_quantised_weights_that_are_loaded_get_the_floor_of_their_bytes(tiny):
    prepared = tiny.prepare(request())
    config = copy.deepcopy(tiny.module.config)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    elements = Parameters.of_model(tiny.module, tiny.anatomy)
    # As if the language model's weights lay in memory at half a byte, all others at two.
    bytes_of = {name: (0.5 if name == "language_model" else 2) * count for name, count in vars(elements).items()}
    stored = Parameters(**{name: round(count) for name, count in bytes_of.items()})
    costs = Costs(config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy, stored=stored)
    row = costs.columns(prepared.inputs, prepared.counts, output_tokens=16)
    plain = Costs(tiny.module.config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy)
    whole = plain.columns(prepared.inputs, prepared.counts, output_tokens=16)
    assert row["bytes_vision_encoder"] == whole["bytes_vision_encoder"]
    saved = 1.5 * elements.language_model
    assert whole["bytes_llm_prefill"] - row["bytes_llm_prefill"] == pytest.approx(saved, abs=1)
    assert whole["bytes_llm_decode"] - row["bytes_llm_decode"] == pytest.approx(15 * saved, abs=15)
    assert row["floor_ms_llm_decode"] < whole["floor_ms_llm_decode"]
    assert "bitsandbytes_4bit" in row["flops_note"]


def test_products_of_eight_bits_may_be_twice_as_fast(tiny):
    config = copy.deepcopy(tiny.module.config)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    stored = Parameters.of_model(tiny.module, tiny.anatomy)
    costs = Costs(config, dtype="bfloat16", peaks=H200, anatomy=tiny.anatomy, stored=stored)
    assert costs.peaks.peaks.flops_per_s == 2 * H200.peaks.flops_per_s


def test_bytes_by_stage_are_those_in_memory(tiny):
    found = Parameters.of_model(tiny.module, tiny.anatomy, size=in_memory)
    assert found.total == sum(p.numel() * p.element_size() for p in tiny.module.parameters())


def test_one_image_is_prepared_once(tiny, monkeypatch):
    planner = Planner(tiny, peaks=H200)
    calls = []
    real = Preparer.prepare
    monkeypatch.setattr(Preparer, "prepare", lambda self, r: calls.append(r) or real(self, r))
    for output in (1, 8, 64):
        for batch in (1, 4):
            planner.plan(request(output=output, batch_size=batch))
    assert len(calls) == 1
    planner.plan(request(image_size=(56, 56)))
    assert len(calls) == 2


def test_a_later_turn_is_predicted_and_what_begins_over_a_cache_is_not(tiny):
    planner = Planner(tiny, peaks=H200)
    first, second = (planner.counts(request(turns=turns)).num_input_tokens for turns in (1, 2))
    assert second > first + 16
    for over in ({"kv_length": 64}, {"turns": 2, "reuse_cache": True}, {"frames": 4}):
        with pytest.raises(UnreachablePointError, match="measured, not predicted"):
            planner.plan(request(**over))


def test_a_checkpoint_needs_no_weights(tiny, tmp_path):
    tiny.module.config.save_pretrained(tmp_path)
    tiny.processor.image_processor.save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(tiny.processor.chat_template, encoding="utf-8")
    stored = weightless(ModelSpec(name="stored", weights="pretrained", path=str(tmp_path)))
    assert Planner(stored, peaks=H200).plan(request()) == Planner(tiny, peaks=H200).plan(request())


def test_a_checkpoint_without_configuration_is_said(tmp_path):
    with pytest.raises(ModelError, match="no configuration that can be read"):
        weightless(ModelSpec(name="empty", weights="pretrained", path=str(tmp_path)))


def test_unknown_family_is_counted(tiny, monkeypatch):
    known = Planner(tiny, peaks=H200).plan(request(output=9, batch_size=3))

    def refuse(config):
        raise ClosedFormError("not known")

    monkeypatch.setattr(vlmbench.cost.decoder_formula, "vision_of", refuse)
    counted = Planner(tiny, peaks=H200).plan(request(output=9, batch_size=3))
    assert counted.flops == known.flops
    assert counted.unknown == ()
    assert "FLOPs counted" in counted.notes


def test_wrong_closed_form_is_noticed(tiny, monkeypatch):
    import vlmbench.cost.decoder_formula as module

    known = Planner(tiny, peaks=H200).plan(request(output=9))
    monkeypatch.setattr(module, "_UNGATED", frozenset({"qwen2_5_vl_text"}))
    assert Planner(tiny, peaks=H200).plan(request(output=9)).flops == known.flops


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
@pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning")  # transformers' own
def test_every_shipped_model_is_predicted(name):
    try:
        planner = Planner(weightless(spec_of(name)), peaks=H200)
    except ModelError as error:  # a processor that runs on torchvision only, or an architecture of a later release
        pytest.skip(str(error))
    point = planner.plan(request(output=32))
    assert point.expected_ms > point.floor_ms > 0
    assert "FLOPs counted" not in point.notes, "the closed form holds"


def test_grid_of_a_72b_within_ten_seconds():
    """A thousand points, 10 resolutions x 10 prompts x 10 output lengths, processor and all."""
    start = time.process_time()  # not the wall clock: other tests may run beside this one
    planner = Planner(weightless(spec_of("qwen2_5_vl_72b")), peaks=H200, memory_bytes=4 * 141 * 10**9)
    points = [
        planner.plan(request(output=output, prompt_tokens=prompt, image_size=(28 * side, 28 * side)))
        for side in range(4, 24, 2)
        for prompt in range(16, 1016, 100)
        for output in range(8, 88, 8)
    ]
    elapsed = time.process_time() - start
    assert len(points) == 1000
    assert elapsed < 10
    assert [p.counts.num_vision_tokens for p in points[::100]] == [side * side for side in range(4, 24, 2)]
    assert [p.counts.num_prompt_tokens for p in points[:100:10]] == list(range(16, 1016, 100))
    assert all(p.fits for p in points)
