from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmbench.errors import ModelError
from vlmbench.models.molmo.checkpoint_config import convert_config
from vlmbench.models.molmo.checkpoint_plan import detect_layout, make_plan
from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.convert import convert_checkpoint, main

FAMILIES = ("olmoe", "olmo2", "qwen2")
Weights = dict[str, torch.Tensor]
families = pytest.mark.parametrize("family", FAMILIES)


def weights_of(folder: Path) -> Weights:
    made: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        made |= load_file(file)
    return made


def same(a: Weights, b: Weights) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def link_all_but_weights(source: Path, to: Path) -> Path:
    to.mkdir()
    for file in source.iterdir():
        if not file.name.startswith("model"):
            (to / file.name).write_bytes(file.read_bytes())
    return to


def original_layout(hub: Weights, experts: int, layers: int) -> Weights:
    """allenai/molmo's own names from the hub's; MolmoE's experts stacked on their rows."""
    plain = {name.removeprefix("model."): tensor for name, tensor in hub.items()}
    if not experts:
        return plain
    made: Weights = {"transformer.ff_out.weight": plain.pop("lm_head.weight")}
    for layer in range(layers):
        block = f"transformer.blocks.{layer}."
        stacks: dict[str, list[torch.Tensor]] = {"w1": [], "v1": [], "w2": []}
        for expert in range(experts):
            at = f"{block}mlp.experts.{expert}."
            stacks["w1"].append(plain.pop(at + "gate_proj.weight"))
            stacks["v1"].append(plain.pop(at + "up_proj.weight"))
            stacks["w2"].append(plain.pop(at + "down_proj.weight").T)
        made |= {f"{block}ffn.experts.mlp.{name}": torch.cat(parts).contiguous() for name, parts in stacks.items()}
        made[block + "ffn.router.layer.weight"] = plain.pop(block + "mlp.gate.weight")
        made[block + "ff_norm.weight"] = plain.pop(block + "mlp.ff_norm.weight")
    return made | {name.replace(".attn.", "."): tensor for name, tensor in plain.items()}


# ----------------------------------------------------------------------------------- what is read and written


@families
def test_converted_keys_are_what_transformers_saves(
    family: str, converted: dict[str, Path], load: Callable[[str], Any], tmp_path: Path
) -> None:
    load(family).save_pretrained(tmp_path)
    assert same(weights_of(converted[family]), weights_of(tmp_path))
    config = json.loads((converted[family] / "config.json").read_text())
    assert config["architectures"] == ["MolmoForConditionalGeneration"]
    assert config["model_type"] == "molmo"
    assert config["eos_token_id"] == 5
    assert config["image_token_id"] == load(family).config.text_config.vocab_size + 2 or family != "qwen2"


@families
def test_all_layouts_give_the_same(
    family: str, released: dict[str, Path], converted: dict[str, Path], oracles: dict[str, Any], tmp_path: Path
) -> None:
    dims = next(c["dims"] for c in oracles["cases"] if c["family"] == family)
    hub = weights_of(released[family])
    original = original_layout(hub, dims["n_experts"], dims["n_layers"])
    assert detect_layout(hub) == ("hub_moe" if family == "olmoe" else "hub")
    assert detect_layout(original) == "original"
    want = weights_of(converted[family])
    prefixed = {f"model.{name}": tensor for name, tensor in original.items()}
    for name, weights in (("original", original), ("prefixed", prefixed)):
        folder = link_all_but_weights(released[family], tmp_path / name)
        torch.save(weights, folder / ("model.pt" if name == "original" else "pytorch_model.bin"))
        convert_checkpoint(folder, tmp_path / f"{name}_made")
        assert same(weights_of(tmp_path / f"{name}_made"), want)


def test_yaml_configuration_and_a_tokenizer_elsewhere(
    released: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    """The folder that allenai/molmo's own archives unpack to."""
    import yaml

    source = tmp_path / "original"
    source.mkdir()
    raw = json.loads((released["qwen2"] / "config.json").read_text())
    names = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    names |= {"num_key_value_heads": "n_kv_heads", "intermediate_size": "mlp_hidden_size"}
    model = {names.get(name, name): value for name, value in raw.items()} | {"max_sequence_length": 4096}
    (source / "config.yaml").write_text(yaml.safe_dump({"model": model, "seed": 1}))
    hub = weights_of(released["qwen2"])
    torch.save(original_layout(hub, 0, 3), source / "model.pt")
    with pytest.raises(ModelError, match="--tokenizer"):
        convert_checkpoint(source, tmp_path / "made")
    convert_checkpoint(source, tmp_path / "made", tokenizer=released["qwen2"])
    assert same(weights_of(tmp_path / "made"), weights_of(converted["qwen2"]))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_checkpoints(kind: str, released: dict[str, Path], converted: dict[str, Path], tmp_path: Path) -> None:
    source = link_all_but_weights(released["olmo2"], tmp_path / "source")
    weights = weights_of(released["olmo2"])
    names = sorted(weights)
    base = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    weight_map = {}
    for number in range(3):
        part = {name: weights[name] for name in names[number::3]}
        file = f"part-{number}.{kind}"
        save_file(part, source / file) if kind == "safetensors" else torch.save(part, source / file)
        weight_map |= dict.fromkeys(part, file)
    (source / f"{base}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    convert_checkpoint(source, tmp_path / "made", shard_bytes=200_000)
    made = tmp_path / "made"
    assert len(list(made.glob("*.safetensors"))) > 3
    assert all(f.stat().st_size < 320_000 for f in made.glob("*.safetensors"))  # no tensor of it is larger
    assert same(weights_of(made), weights_of(converted["olmo2"]))
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights_of(made).values())
    _, info = AutoModelForImageTextToText.from_pretrained(made, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    (source / "part-1").with_suffix(f".{kind}").unlink()
    with pytest.raises(ModelError, match=f"part-1.{kind}"):
        convert_checkpoint(source, tmp_path / "again")


def test_dtype_is_kept_or_changed(released: dict[str, Path], tmp_path: Path) -> None:
    convert_checkpoint(released["olmoe"], tmp_path / "half", dtype="bfloat16")
    made = weights_of(tmp_path / "half")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="int8"):
        convert_checkpoint(released["olmoe"], tmp_path / "no", dtype="int8")


def test_special_ids_come_from_the_tokenizer(released: dict[str, Path], converted: dict[str, Path]) -> None:
    """Leftovers of another tokenizer beside tokenizer.json change nothing."""
    config = MolmoConfig.from_pretrained(converted["olmoe"])
    ids = (config.image_start_token_id, config.image_end_token_id, config.image_token_id, config.image_col_token_id)
    assert ids == (300, 301, 302, 303)
    assert AutoProcessor.from_pretrained(converted["olmoe"]).tokenizer.padding_side == "left"


def test_stale_token_files_are_not_read(released: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in released["olmoe"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "added_tokens.json").write_text(json.dumps({"<im_patch>": 100280, "<im_start>": 100278}))
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<nothing>"}))
    assert convert_checkpoint(source, tmp_path / "made").image_token_id == 302


# ----------------------------------------------------------------------------------------- what is refused


def broken(released: Path, to: Path, change: Callable[[Weights], None]) -> Path:
    source = link_all_but_weights(released, to)
    weights = weights_of(released)
    change(weights)
    save_file(weights, source / "model.safetensors")
    return source


@families
def test_missing_surplus_and_wrong_tensors_are_named(family: str, released: dict[str, Path], tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        del weights["model.transformer.ln_f.weight"]
        weights["model.transformer.extra"] = torch.zeros(1)
        weights["model.vision_backbone.pad_embed"] = torch.zeros(2, 5)

    source = broken(released[family], tmp_path / "source", change)
    with pytest.raises(ModelError) as caught:
        convert_checkpoint(source, tmp_path / "made")
    message = str(caught.value)
    assert "1 missing: model.transformer.ln_f.weight" in message
    assert "1 surplus: model.transformer.extra" in message
    assert "1 wrongly shaped: model.vision_backbone.pad_embed (2, 5), not (2, 64)" in message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_cut_off_files(name: str, keep: float, released: dict[str, Path], tmp_path: Path) -> None:
    source = link_all_but_weights(released["qwen2"], tmp_path / "source")
    file = source / name
    weights = weights_of(released["qwen2"])
    save_file(weights, file) if name.endswith("safetensors") else torch.save(weights, file)
    size = file.stat().st_size
    os.truncate(file, int(size * keep) if 0 < keep < 1 else size - 1 if keep == -1 else int(keep))
    with pytest.raises(ModelError, match=name):
        convert_checkpoint(source, tmp_path / "made")


@pytest.mark.parametrize("known_from", ["SHA256SUMS", "download"])
def test_a_file_with_another_hash(known_from: str, released: dict[str, Path], tmp_path: Path) -> None:
    """One flipped bit in a weight: right names, right shapes, right size."""
    source = Path(shutil.copytree(released["qwen2"], tmp_path / "source"))
    file = source / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if known_from == "SHA256SUMS":
        (source / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    else:
        records = source / ".cache" / "huggingface" / "download"
        records.mkdir(parents=True)
        (records / "model.safetensors.metadata").write_text(f"{'0' * 40}\n{digest}\n1727300000.0\n")
    convert_checkpoint(source, tmp_path / "sound")
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([file.read_bytes()[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"wrong SHA-256 hashes: model\.safetensors"):
        convert_checkpoint(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_pickle_that_would_run_code(released: dict[str, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    source = link_all_but_weights(released["qwen2"], tmp_path / "source")
    torch.save({"a": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code"):
        convert_checkpoint(source, tmp_path / "made")
    assert not (tmp_path / "ran").exists()


def test_folders_without_what_is_needed(released: dict[str, Path], converted: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no configuration"):
        convert_checkpoint(tmp_path, tmp_path / "made")
    with pytest.raises(ModelError, match="no weights"):
        convert_checkpoint(link_all_but_weights(released["qwen2"], tmp_path / "a"), tmp_path / "made")
    with pytest.raises(ModelError, match="converted already"):
        convert_checkpoint(converted["qwen2"], tmp_path / "made")
    with pytest.raises(ModelError, match="not an empty folder"):
        convert_checkpoint(released["qwen2"], converted["qwen2"])
    with pytest.raises(ModelError, match="not the tensors of a Molmo"):
        detect_layout(["model.layers.0.weight"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        convert_checkpoint(tmp_path / "b", tmp_path / "made")


def test_an_index_cannot_lead_out_of_its_folder(released: dict[str, Path], tmp_path: Path) -> None:
    source = link_all_but_weights(released["qwen2"], tmp_path / "source")
    index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a file of the folder"):
        convert_checkpoint(source, tmp_path / "made")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"layer_norm_type": "default"}, "layer_norm_type"),
        ({"weight_tying": True}, "weight_tying"),
        ({"qkv_bias": False, "norm_after": False}, "none of Molmo's"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, Any], word: str, released: dict[str, Path]) -> None:
    raw = json.loads((released["qwen2"] / "config.json").read_text())
    with pytest.raises(ModelError, match=word):
        convert_config({**raw, **change})


def test_the_tokenizer_of_another_model_is_refused(released: dict[str, Path], tmp_path: Path) -> None:
    from vlmbench.models.offline_tokenizer import build_tokenizer

    special = {"<|endoftext|>": 5, "<im_start>": 900, "<im_end>": 901, "<im_patch>": 902, "<im_col>": 903}
    build_tokenizer(size=904, special_tokens=special, roles={"eos_token": "<|endoftext|>"}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="903"):
        convert_checkpoint(released["qwen2"], tmp_path / "made", tokenizer=tmp_path)


def test_a_failure_leaves_nothing_behind(
    released: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(released["qwen2"], tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_loading_a_released_folder_says_what_to_do(released: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"vlmbench\.models\.molmo\.convert SRC DST"):
        AutoModelForImageTextToText.from_pretrained(released["qwen2"])


# ------------------------------------------------------------------------------------------- command, memory


def test_command_line(released: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    assert main([str(released["olmo2"]), str(made), "--dtype", "float16"]) == 0
    assert "converted to" in capsys.readouterr().err
    assert main([str(released["olmo2"]), str(made)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def _large_checkpoint(folder: Path, released: Path, *, kind: str) -> tuple[int, int]:
    """A synthetic checkpoint of about 700 MB; its bytes, and those of its largest tensor."""
    raw = json.loads((released / "config.json").read_text())
    raw |= {"d_model": 512, "n_layers": 4, "moe_num_experts": 32, "mlp_hidden_size": 1024, "moe_top_k": 2}
    link_all_but_weights(released, folder)
    (folder / "config.json").write_text(json.dumps(raw))
    plan = make_plan(convert_config(raw), "original" if kind == "pt" else "hub_moe")
    weights = {name: torch.zeros(shape) for name, shape in plan.expected.items()}
    torch.save(weights, folder / "model.pt") if kind == "pt" else save_file(weights, folder / "model.safetensors")
    sizes = [tensor.nbytes for tensor in weights.values()]
    return sum(sizes), max(sizes)


_MEASURE = """
import resource, sys
from pathlib import Path
from vlmbench.models.molmo import checkpoint_source
from vlmbench.models.molmo.convert import convert_checkpoint
checkpoint_source.REMAP_BYTES = 16 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=16 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_memory_holds_a_shard_not_the_checkpoint(kind: str, released: dict[str, Path], tmp_path: Path) -> None:
    total, largest = _large_checkpoint(tmp_path / "source", released["olmoe"], kind=kind)
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "source"), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    with safe_open(next((tmp_path / "made").glob("*.safetensors")), "pt") as handle:
        assert list(handle.keys())
    assert total > 350e6
    assert grown < 0.35 * total, (grown, total, largest)
