"""Model files: each constructs without torch, says what it recalls, and describes the model that was published."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.models.shipped import CONF, NAMES, raw, spec
from vlmbench.models.spec import ModelSpec

CONFIG = {"model_type": "llava"}
# vision tokens of a 640x480 image, from the published models' own code
PUBLISHED_TOKENS = {
    "llava_1_5_7b": 576,
    "llava_1_5_13b": 576,
    "llava_v1_6_mistral_7b": 2340,
    "llava_v1_6_vicuna_7b": 2340,
    "llava_onevision_qwen2_0_5b": 2929,
    "llava_onevision_qwen2_7b": 2929,
    "qwen2_vl_2b": 391,
    "qwen2_vl_7b": 391,
    "qwen2_5_vl_3b": 391,
    "qwen2_5_vl_7b": 391,
    "qwen2_5_vl_72b": 391,
    "qwen3_vl_2b": 300,
    "qwen3_vl_4b": 300,
    "qwen3_vl_8b": 300,
    "molmoe_1b": 704,
    "molmo_7b_d": 704,
    "molmo_7b_o": 704,
}
PUBLISHED_PARAMETERS = {
    "llava_1_5_7b": 7_063_427_072,
    "qwen2_vl_2b": 2_208_985_600,
    "qwen2_vl_7b": 8_291_375_616,
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "smolvlm_256m": 256_484_928,
    "smolvlm2_2_2b": 2_246_784_880,
    "gemma3_4b": 4_300_079_472,
    "gemma3_12b": 12_187_325_040,
    "llama_3_2_11b_vision_instruct": 10_670_220_835,
}


def test_importing_and_constructing_needs_no_torch():
    code = (
        "import sys; from vlmbench.models.spec import ModelSpec; "
        "ModelSpec(name='x', config={'model_type': 'llava'}); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_models_are_shipped():
    assert "tiny" in NAMES
    assert len([name for name in NAMES if name != "tiny"]) >= 32


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_constructs_and_is_named_after_its_file(name):
    model = spec(name)
    assert model.name == name
    assert model.weights == "random"
    assert not model.trust_remote_code
    assert name == "tiny" or model.source == model.hub_id


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("molmo_", "molmoe"))])
def test_recalled_facts_are_marked_in_a_comment_too(name):
    recalled = raw(name).get("from_memory") or []
    comments = [line for line in (CONF / f"{name}.yaml").read_text("utf-8").splitlines() if "#" in line]
    assert not recalled or any("ecalled" in line or "memory" in line for line in comments)


@pytest.mark.parametrize("name", sorted(PUBLISHED_TOKENS))
def test_published_vision_tokens(name):
    assert spec(name).vision_tokens_640x480 == PUBLISHED_TOKENS[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_published_parameters(name):
    model = spec(name)
    assert model.params_published == model.params_counted == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "downloaded"}, "'weights' must be one of random, pretrained"),
        ({"weights": "pretrained"}, "'path' or 'hub_id'"),
        ({"config": {}}, "'config.model_type'"),
        ({"path": "DIR"}, "'path' goes with weights=pretrained"),
        ({"quantization": "bitsandbytes_4bit"}, "weights=pretrained"),
        ({"quantization": "int3", "weights": "pretrained", "hub_id": "a/b"}, "'quantization' must be one of"),
        ({"anatomy": {"eyes": ["vision"]}}, r"got \['eyes'\]"),
    ],
)
def test_errors_say_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**{"name": "x", "config": CONFIG, **fields})


def test_a_path_comes_before_the_hub():
    assert ModelSpec(name="x", weights="pretrained", hub_id="a/b", path="c").source == "c"
