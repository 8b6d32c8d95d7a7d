"""FLOPs counted without weights: known answers, agreement with closed forms, with real tensors and among themselves."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.cost.dims import NAMES, config_of, counts_of
from tests.cost.inputs import count_of, synthetic_inputs
from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.flop_counting import count_generate, text_inputs
from vlmbench.cost.flop_sharing import Counter
from vlmbench.cost.stage_costs import ClosedFormError, agreement, disagreements
from vlmbench.models.weightless import ghost_of_config
from vlmbench.request import TokenCounts

LLAVA = TokenCounts(
    num_input_tokens=612, num_prompt_tokens=36, num_vision_tokens=576, num_vision_patches=576, num_crops=1, num_images=1
)


@pytest.fixture(scope="module")
def llava_config():
    return config_of("llava-1.5-7b")


@pytest.fixture(scope="module")
def llava(llava_config):
    return ghost_of_config(llava_config)


def test_llava_known_answers(llava, llava_config):
    """The figures that a pencil gives for LLaVA-1.5-7B with 612 tokens, to the unit."""
    inputs = synthetic_inputs(llava_config, LLAVA, padding=36)
    assert inputs["input_ids"].shape == (1, 612)
    got = count_generate(llava, inputs, new_tokens=3)
    assert got.prefill_body == 8_122_999_504_896
    assert got.prefill_head == 262_668_288
    assert got.vision_encoder == 381_918_216_192
    assert got.projector == 24_159_191_040
    assert len(got.steps) == 2
    closed = ClosedForm.of(llava_config).flops(LLAVA, 3)
    assert closed.llm_prefill == got.prefill
    assert closed.head == got.prefill_head
    assert closed.vision_encoder == got.vision_encoder
    assert closed.projector == got.projector
    assert closed.llm_decode == sum(got.steps)


def test_no_weights_are_made(llava):
    assert {p.device.type for p in llava.parameters()} == {"meta"}


def test_one_token_has_no_decode(llava, llava_config):
    assert count_generate(llava, text_inputs(llava_config, 5), new_tokens=1).steps == ()


def test_text_only_request_has_no_vision(llava, llava_config):
    got = count_generate(llava, text_inputs(llava_config, 5), new_tokens=1)
    assert (got.vision_encoder, got.projector) == (0, 0)


def test_batch_counts_whole(llava, llava_config):
    one = text_inputs(llava_config, 7)
    three = {name: value.repeat(3, 1) for name, value in one.items()}
    single, batch = (count_generate(llava, i, new_tokens=2) for i in (one, three))
    assert batch.prefill == 3 * single.prefill
    assert batch.steps == (3 * single.steps[0],)


def test_vision_only_stops_before_the_language_model(llava, llava_config):
    got = count_generate(llava, synthetic_inputs(llava_config, LLAVA), vision_only=True)
    assert (got.vision_encoder, got.prefill, got.steps) == (381_918_216_192, 0, ())


@pytest.mark.parametrize("name", NAMES)
def test_count_equals_closed_form(name):
    """Every stage, to the unit, of every model as it is."""
    config = config_of(name)
    images = synthetic_inputs(config, counts_of(name))
    counts = dataclasses.replace(counts_of(name), num_input_tokens=images["input_ids"].shape[1])
    closed = ClosedForm.of(config).flops(counts, 3)
    whole = count_generate(ghost_of_config(config), images, new_tokens=3)
    found = (whole.projector, whole.prefill, whole.prefill_head, sum(whole.steps))
    assert found == (closed.projector, closed.llm_prefill, closed.head, closed.llm_decode)
    if config.model_type == "mllama":
        # Its tower makes the attention mask by a matrix product: the only difference.
        tower = ClosedForm.of(config).vision.tower
        positions = 4 * (tower.tile_patches + tower.tile_extra)
        assert whole.vision_encoder - closed.vision_encoder == 2 * positions * positions
    else:
        assert whole.vision_encoder == closed.vision_encoder


@pytest.mark.parametrize(
    ("name", "tokens", "output"),
    [
        ("smolvlm-256m", 700, 40),
        ("gemma3-4b", 1000, 60),  # the decode crosses the window of 1,024
        ("gemma3-4b", 1500, 60),  # starts above it
        ("llama-3.2-11b-vision-instruct", 60, 20),  # cross-attention: counted whole
        ("molmoe-1b", 500, 20),
    ],
)
def test_counter_agrees_with_closed_form(name, tokens, output):
    config = config_of(name, layers=7)  # seven: of Gemma's, six have a window and one has not
    counts = dataclasses.replace(counts_of(name), num_input_tokens=tokens)
    counted = count_of(Counter.of_config(config), config, counts, output, batch_size=2)
    closed = ClosedForm.of(config).flops(counts, output, batch_size=2)
    assert not disagreements(agreement(counted, closed), tolerance=1e-5)
    assert counted.llm_decode == closed.llm_decode
    assert counted.llm_prefill == closed.llm_prefill


def test_counter_counts_each_image_shape_once(monkeypatch):
    import vlmbench.cost.flop_sharing as module

    runs = []
    real = module.count_generate

    def watched(*args, **kwargs):
        runs.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "count_generate", watched)
    config = config_of("llava-1.5-7b", layers=3)
    counter = Counter.of_config(config)
    first = count_of(counter, config, LLAVA, 4)
    after_first = len(runs)
    for output in (1, 2, 77):
        count_of(counter, config, LLAVA, output)
    assert len(runs) == after_first
    assert counter.notes == []
    assert first == ClosedForm.of(config).flops(LLAVA, 4)


def test_equals_a_true_run_on_the_cpu():
    """The same model with weights, run for real under torch's counter with eager attention."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(
        "llava",
        image_token_index=90,
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                       "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
                     "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 100},
    )  # fmt: skip
    counts = TokenCounts(num_input_tokens=24, num_prompt_tokens=8, num_vision_tokens=16, num_crops=1, num_images=1)
    inputs = synthetic_inputs(config, counts)
    ghost = count_generate(ghost_of_config(config), inputs, new_tokens=4)
    real = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    real.generation_config.eos_token_id = None
    inputs["pixel_values"] = torch.randn(1, 3, 28, 28)
    with FlopCounterMode(display=False) as counter:
        real.generate(**inputs, max_new_tokens=4, do_sample=False)
    total = ghost.vision_encoder + ghost.projector + ghost.prefill + sum(ghost.steps)
    # Some releases write the table of rotary angles as a matrix product: 24 + 3 positions, 4 frequencies.
    assert counter.get_total_flops() - total in (0, 2 * 27 * 4)
    assert ClosedForm.of(config).flops(counts, 4).total == total


def test_unequal_image_tiles_are_refused():
    config = config_of("llava-v1.6-mistral-7b")
    counts = TokenCounts(num_input_tokens=9, num_prompt_tokens=8, num_vision_tokens=0, num_crops=7, num_images=2)
    with pytest.raises(ClosedFormError, match="count a prepared request"):
        synthetic_inputs(config, counts)


def test_the_configuration_is_left_alone(llava_config):
    before = llava_config.to_json_string()
    ghost_of_config(llava_config)
    assert llava_config.to_json_string() == before
