"""A released folder loaded as it is gives the model that the converter gives, tensor for tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.shipped import loaded, spec
from vlmbench.errors import ModelError
from vlmbench.models.loading import weightless
from vlmbench.models.molmo.modeling import MolmoForConditionalGeneration
from vlmbench.models.molmo.released import load_released

families = pytest.mark.parametrize("family", ["olmoe", "olmo2", "qwen2"])
YAMLS = {"olmoe": "molmoe_1b", "olmo2": "molmo_7b_o", "qwen2": "molmo_7b_d"}


def given(family: str, path: Path, **changes: Any) -> Any:
    return spec(YAMLS[family], weights="pretrained", path=str(path), **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_tensors_as_converted_first(
    family: str, dtype: torch.dtype, released: dict[str, Path], converted: dict[str, Path]
) -> None:
    module, info = load_released(released[family], dtype=dtype)
    want = MolmoForConditionalGeneration.from_pretrained(converted[family], dtype=dtype)
    assert type(module) is MolmoForConditionalGeneration
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(module.state_dict(), want.state_dict())
    first, second = module.config.to_dict(), want.config.to_dict()
    differ = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert differ <= {"architectures", "dtype", "_name_or_path"}, differ


@families
def test_saved_again_it_is_the_converted_checkpoint(
    family: str, released: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    module, _ = load_released(released[family], dtype=torch.float32)
    module.save_pretrained(tmp_path / "as_released")
    assert same(weights_of(tmp_path / "as_released"), weights_of(converted[family]))
    # The mapping belongs to released checkpoints: another model of this process is saved and loaded as before.
    other = MolmoForConditionalGeneration(module.config)
    other.save_pretrained(tmp_path / "other")
    assert set(weights_of(tmp_path / "other")) == set(weights_of(converted[family]))
    assert same(MolmoForConditionalGeneration.from_pretrained(tmp_path / "other").state_dict(), other.state_dict())


@families
def test_model_path_takes_the_released_folder(
    family: str, released: dict[str, Path], converted: dict[str, Path]
) -> None:
    first, second = (loaded(given(family, to[family]), device="cpu", dtype="float32") for to in (released, converted))
    assert same(first.module.state_dict(), second.module.state_dict())
    assert first.processor.tokenizer.get_vocab() == second.processor.tokenizer.get_vocab()
    assert first.processor.image_processor.to_dict() == second.processor.image_processor.to_dict()
    differ = {key for key, value in first.provenance.items() if value != second.provenance[key]}
    assert differ <= {"build_s"}, differ
    assert first.module.generation_config.eos_token_id == second.module.generation_config.eos_token_id
    ghost = weightless(given(family, released[family]), dtype="float32")
    assert {n: p.shape for n, p in ghost.module.named_parameters()} == {
        n: p.shape for n, p in first.module.named_parameters()
    }


def _lose(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.transformer.blocks.1.ff_proj.weight"]


def _add(weights: dict[str, torch.Tensor]) -> None:
    weights["model.transformer.blocks.9.ff_proj.weight"] = torch.zeros(2, 2)


def _cut(weights: dict[str, torch.Tensor]) -> None:
    name = "model.transformer.blocks.0.att_proj.weight"
    weights[name] = weights[name][1:].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose, r"1 missing: model\.transformer\.blocks\.1\.ff_proj\.weight"),
        (_add, r"1 surplus: model\.transformer\.blocks\.9\.ff_proj\.weight"),
        (_cut, r"1 wrongly shaped: model\.transformer\.blocks\.0\.att_proj\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], None], words: str, released: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(released["qwen2"], tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=words):
        loaded(given("qwen2", folder), device="cpu", dtype="float32")


def test_what_needs_the_converter(released: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released["qwen2"], tmp_path / "original"))
    weights = load_file(folder / "model.safetensors")
    save_file({n.removeprefix("model."): t for n, t in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"vlmbench\.models\.molmo\.convert"):
        loaded(given("qwen2", folder), device="cpu", dtype="float32")
    with pytest.raises(ModelError, match=r"neither quantised nor split .*vlmbench\.models\.molmo\.convert"):
        loaded(given("qwen2", released["qwen2"], quantization="torchao_int8"), device="cpu", dtype="float32")
