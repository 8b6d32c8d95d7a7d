"""Loading and running: real architectures with random weights, checkpoints on disk, and every refusal."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.shipped import NAMES, loaded, request, save_checkpoint, shrunken, spec
from vlmbench.errors import ConfigError, DeviceError, ModelError, SampleError
from vlmbench.models import loading, placement, transformers_library
from vlmbench.models.transformers_model import read_images
from vlmbench.request import ImageSource
from vlmbench.runner.execution import in_memory

# Some processors of transformers still treat tensors as arrays the old way; 5.17 renames an argument of Mllama.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*hidden_state:FutureWarning"),
]

# One of each layout; those that tile an image into a dozen crops are slow on a CPU.
QUICK = (
    "llava_1_5_7b",
    "llava_v1_6_mistral_7b",
    "llava_onevision_qwen2_0_5b",
    "qwen2_vl_2b",
    "qwen2_5_vl_3b",
    "qwen3_vl_2b",
    "paligemma2_3b_224",
)
SLOW = ("internvl3_1b", "smolvlm_256m", "smolvlm2_2_2b", "idefics3_8b", "gemma3_4b", "llama_3_2_11b_vision")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return loaded(spec("tiny"), device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    return save_checkpoint(tiny, tmp_path_factory.mktemp("checkpoint"))


def run(model, **knobs) -> torch.Tensor:
    return model.generate(model.transfer(model.prepare(request(**knobs))))


def parameters(module) -> float:
    return float(sum(p.detach().double().abs().sum() for p in module.parameters()))


# ------------------------------------------------------------------------------- real dimensions, on meta


@pytest.mark.parametrize("name", [n for n in NAMES if spec(n).params_counted is not None])
def test_parameters_are_those_published(name):
    model = spec(name)
    try:
        config = loading.build_config(model)
    except ModelError as error:
        if "no architecture" not in str(error):
            raise
        pytest.skip(str(error))
    counted = loading.count_parameters(loading.module_on_meta(config))
    assert counted == model.params_counted
    assert model.params_published in (None, counted)


# ---------------------------------------------------------------------------------------- generating


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_family_generates(name):
    model = loaded(shrunken(name), device="cpu")
    prepared = model.transfer(model.prepare(request(size=(120, 80), new_tokens=3)))
    assert model.generate(prepared).shape == (1, 3)
    by_stage = model.facts["parameters"]
    assert by_stage["total"] == loading.count_parameters(model.module)
    assert all(by_stage[stage] > 0 for stage in ("vision_encoder", "projector", "language_model"))
    if name in QUICK:
        assert run(model, size=(120, 80), images=2, batch_size=2, new_tokens=2).shape == (2, 2)


def test_facts(tiny):
    facts = tiny.facts
    assert (facts["weights"], facts["seed"], facts["dtype"], facts["attention"]) == ("random", 0, "float32", "sdpa")
    assert facts["model_type"] == "qwen2_5_vl"
    assert facts["processor_backend"] in ("pil", "torchvision")
    assert facts["parameters"]["total"] == loading.count_parameters(tiny.module)
    assert not tiny.module.training


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_a_forced_length_is_exact(tiny, tokens):
    assert run(tiny, new_tokens=tokens, size=(112, 112)).shape == (1, tokens)


def test_end_of_sequence_stops_a_natural_length_and_is_suppressed_in_a_forced_one(tiny):
    free = run(tiny, new_tokens=6, size=(112, 112), forced=False)[0].tolist()
    config = tiny.module.generation_config
    before = config.eos_token_id
    try:
        config.eos_token_id = free[2]  # what the model says third now ends the answer
        stopped = run(tiny, new_tokens=6, size=(112, 112), forced=False)[0].tolist()
        forced = run(tiny, new_tokens=6, size=(112, 112), forced=True)[0].tolist()
    finally:
        config.eos_token_id = before
    assert stopped == free[: free.index(free[2]) + 1]
    assert len(forced) == 6
    assert free[2] not in forced


def test_every_call_starts_empty(tiny):
    assert torch.equal(run(tiny, new_tokens=5), run(tiny, new_tokens=5))


def test_rows_of_a_batch_are_equal(tiny):
    tokens = run(tiny, new_tokens=4, batch_size=3, size=(140, 112))
    assert tokens.shape == (3, 4)
    assert torch.equal(tokens[0], tokens[2])


def test_stopping_criteria_see_every_token(tiny):
    seen = []

    def mark(input_ids, scores, **kwargs):
        seen.append(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    prepared = tiny.transfer(tiny.prepare(request(new_tokens=4, size=(112, 112))))
    tiny.generate(prepared, [mark])
    start = prepared.inputs["input_ids"].shape[1]
    assert seen == [start + 1, start + 2, start + 3, start + 4]


def test_tokens_become_text(tiny):
    texts = tiny.detokenize(run(tiny, new_tokens=4, batch_size=2, size=(112, 112)))
    assert len(texts) == 2
    assert all(isinstance(text, str) for text in texts)


def test_seeds():
    one, same, other = (loaded(spec("tiny"), device="cpu", seed=seed).module for seed in (1, 1, 2))
    assert parameters(one) == parameters(same) != parameters(other)


def test_dtype_attention_and_static_cache():
    model = loaded(
        spec("tiny"), device="cpu", dtype="bfloat16", attn_implementation="eager", cache_implementation="static"
    )
    moved = model.transfer(model.prepare(request(size=(112, 112), new_tokens=3)))
    assert moved.inputs["pixel_values"].dtype == torch.bfloat16
    assert moved.inputs["input_ids"].dtype == torch.int64
    assert model.facts["attention"] == "eager"
    first = model.generate(moved)
    assert first.shape == (1, 3)
    assert torch.equal(first, model.generate(moved))


def test_no_image_is_text_only(tiny):
    assert run(tiny, images=0, new_tokens=3).shape == (1, 3)


# ---------------------------------------------------------------------------------------- preparing


def test_images_are_read_outside_and_decoded_inside(tiny):
    wanted = request(size=(64, 48))
    reads = []
    original = wanted.images[0]
    counted = replace(original, read=lambda: reads.append(1) or original.read())
    wanted = replace(wanted, sample=replace(wanted.sample, images=(counted,)))
    encoded = read_images(wanted)
    assert reads == [1]
    assert tiny.prepare(wanted, encoded).counts == tiny.prepare(in_memory(wanted)).counts
    assert reads == [1, 1]


def test_image_size_and_number_of_images(tiny):
    prepared = tiny.prepare(request(image_size=(56, 84), num_images=3))
    assert prepared.counts.num_vision_tokens == 3 * 6


def missing() -> bytes:
    raise FileNotFoundError("no such file: cat.jpg")


@pytest.mark.parametrize("reader", [missing, lambda: b"", lambda: b"\xff\xd8\xff broken"])
def test_a_bad_image_is_a_sample_error(tiny, reader):
    wanted = request()
    image = ImageSource(name="cat.jpg", read=reader)
    with pytest.raises(SampleError, match=r"cat\.jpg"):
        tiny.prepare(replace(wanted, sample=replace(wanted.sample, images=(image,))))


def test_a_strip_that_the_processor_refuses_is_a_sample_error(tiny):
    with pytest.raises(SampleError, match="refuses 2000x2"):
        tiny.prepare(request(size=(2000, 2)))


# ------------------------------------------------------------------------------------------ refusals


def test_too_little_memory_is_said_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(placement, "free_bytes", lambda device: 10 * 2**30)
    with pytest.raises(DeviceError, match=r"qwen2_5_vl_72b.* needs 273\.5 GiB .*10\.0 GiB free"):
        loaded(spec("qwen2_5_vl_72b"), device="cpu")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "abacus"}, ValueError, "'runtime.device' must be"),
        ({"device": "cuda:97"}, DeviceError, r"CUDA device\(s\) visible"),
        ({"dtype": "int8"}, ValueError, "'runtime.dtype' must be one of"),
        ({"attn_implementation": "wibble"}, ModelError, "wibble"),
        ({"compile": True}, DeviceError, "compile=true needs CUDA"),
        ({"tp_plan": "auto"}, ConfigError, "needs two or more processes of torchrun"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        loaded(spec("tiny"), **{"device": "cpu", **options})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "wibble"}, "no architecture 'wibble'"),
        ({"model_type": "qwen2_5_vl", "text_config": {"hidden_size": "x"}}, "is refused.*hidden_size"),
        ({"model_type": "bert"}, "processor.class|cannot be built"),
    ],
)
def test_configurations(config, message):
    with pytest.raises(ModelError, match=message):
        loaded(replace(spec("tiny"), config=config, processor={}), device="cpu")


def test_a_plugin_that_is_not_there():
    with pytest.raises(ModelError, match=r"'plugin' 'vlmbench\.wibble'"):
        loaded(replace(spec("tiny"), plugin="vlmbench.wibble"), device="cpu")


@pytest.mark.parametrize(
    ("options", "fields", "package"),
    [
        ({"device_map": "auto"}, {}, "accelerate"),
        ({}, {"quantization": "bitsandbytes_4bit"}, "bitsandbytes"),
        ({}, {"quantization": "torchao_int8"}, "torchao"),
    ],
)
def test_missing_packages_are_named(checkpoint, options, fields, package, monkeypatch):
    from vlmbench.models import building

    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
    model = spec("tiny", weights="pretrained", path=str(checkpoint), **fields)
    with pytest.raises(ModelError, match=f"needs the package {package}"):
        loaded(model, device="cpu", **options)


# --------------------------------------------------------------------------------------- checkpoints


def pretrained(folder: Path):
    return loaded(spec("tiny", weights="pretrained", path=str(folder)), device="cpu")


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_a_checkpoint_answers_like_the_model_it_came_from(tiny, checkpoint):
    loaded = pretrained(checkpoint)
    assert torch.equal(run(loaded, new_tokens=6), run(tiny, new_tokens=6))
    assert loaded.prepare(request()).counts == tiny.prepare(request()).counts
    assert loaded.facts["weights"] == "pretrained"
    assert loaded.facts["source"] == checkpoint.name
    assert "seed" not in loaded.facts


def test_no_folder(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        pretrained(tmp_path)


def test_no_weights(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        pretrained(copied)
    (copied / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: convert"):
        pretrained(copied)


def test_truncated_weights(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError, match="damaged"):
        pretrained(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"missing tensors: lm_head\.weight"),
        (lambda t: t.update({"wibble.weight": torch.zeros(2)}), r"surplus tensors: wibble\.weight"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(7)}), r"wrongly shaped tensors: lm_head\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(copied, change, message):
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        pretrained(copied)


def test_broken_or_unknown_configuration(copied):
    file = copied / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "model_type": "wibble"}))
    with pytest.raises(ModelError, match="wibble"):
        pretrained(copied)
    own = {**stored, "model_type": "wibble", "auto_map": {"AutoModelForImageTextToText": "modeling_wibble.Wibble"}}
    file.write_text(json.dumps(own | {"auto_map": {**own["auto_map"], "AutoConfig": "configuration_wibble.Wibble"}}))
    with pytest.raises(
        ModelError, match=rf"brings Python of its own; read that \({copied}\), then model.trust_remote_code"
    ):
        pretrained(copied)
    file.write_text("{")
    with pytest.raises(ModelError, match="not a valid JSON"):
        pretrained(copied)


def test_a_processor_that_is_missing_or_foreign(copied):
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (copied / name).unlink()
    with pytest.raises(ModelError, match="processor"):
        pretrained(copied)
    loaded(shrunken("llava_1_5_7b"), device="cpu").processor.save_pretrained(copied)
    with pytest.raises(ModelError, match=r"LlavaProcessor.*does not belong"):
        pretrained(copied)


def test_a_hub_id_without_network(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    transformers_library.hub_reachable.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"the hub cannot be reached.*model\.weights=random"):
            loaded(spec("llava_1_5_7b", weights="pretrained", hub_id="nobody/nothing"), device="cpu")
    finally:
        transformers_library.hub_reachable.cache_clear()


def test_decode_that_was_not_compiled_is_not_passed_off_as_compiled(tiny) -> None:
    # transformers compiles nothing on a CPU, and says nothing
    claims = replace(tiny, compile=True, cache_implementation="static")
    prepared = claims.transfer(claims.prepare(in_memory(request())))
    with pytest.raises(DeviceError, match="uncompiled"):
        claims.generate(prepared)
