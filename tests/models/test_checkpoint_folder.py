"""Folders that are no checkpoint, or a damaged one: every refusal names the file or tensor."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.shipped import loaded, shrunken
from vlmbench.errors import ModelError
from vlmbench.models.checkpoint import (
    check_folder,
    check_hashes,
    check_tensors,
    commit_of_folder,
    damaged_files,
    downloaded_hashes,
    listed_hashes,
    uneven_stacks,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded checkpoint of two layers with three experts each."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": {}}))
    for layer in range(2):
        save_file(experts(layer), made / f"model-{layer}.safetensors")
    return made


def experts(layer: int) -> dict[str, torch.Tensor]:
    return {f"m.layers.{layer}.mlp.experts.{expert}.up_proj.weight": torch.zeros(4, 2) for expert in range(3)}


def test_a_sound_folder_passes(folder: Path) -> None:
    check_folder(folder)
    assert damaged_files(folder) == uneven_stacks(folder) == ""
    assert damaged_files(None) == uneven_stacks(None) == ""


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": '{"model_type": "molmo", "hidden_size": 3584}'}, "released Molmo 1"),
        ({"config.yaml": "model: {}", "model.pt": ""}, "released Molmo 1"),
        ({"config.json": "{"}, r"no \*\.safetensors"),
        ({}, r"no config\.json"),
    ],
)
def test_molmo_as_released_gets_the_command_to_type(files: dict[str, str], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=words) as caught:
        check_folder(folder)
    if "Molmo" in words:
        made = f"'{folder}-converted'"
        assert f"vlmbench.models.molmo.convert '{folder}' {made}" in str(caught.value)
        assert str(caught.value).endswith(f"model.path={made}")


def test_the_damaged_shard_is_named(folder: Path) -> None:
    os.truncate(folder / "model-1.safetensors", 90)
    assert damaged_files(folder).startswith("model-1.safetensors (90 bytes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"m.layers.1.mlp.experts.1.up_proj.weight": None}, "missing m.layers.1.mlp.experts.1.up_proj.weight"),
        (
            {"m.layers.1.mlp.experts.2.up_proj.weight": torch.zeros(4, 9)},
            "wrongly shaped m.layers.1.mlp.experts.2.up_proj.weight (4, 9), not (4, 2)",
        ),
    ],
)
def test_experts_unlike_their_siblings_are_named(folder: Path, change: dict[str, Any], words: str) -> None:
    tensors = {name: tensor for name, tensor in {**experts(1), **change}.items() if tensor is not None}
    save_file(tensors, folder / "model-1.safetensors")
    assert uneven_stacks(folder) == words
    info = {"mismatched_keys": {("m.layers.1.mlp.experts.up_proj", torch.Size([2, 4]), torch.Size([3, 4]))}}
    with pytest.raises(ModelError) as caught:
        check_tensors("x", info, folder)
    assert "m.layers.1.mlp.experts.up_proj (2, 4), not (3, 4)" in str(caught.value)
    assert words in str(caught.value)


def test_tensors_are_named_by_kind_and_counted() -> None:
    check_tensors("x", {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}, None)
    with pytest.raises(ModelError, match=r"missing tensors: a0, a1, a2, a3, a4 and 2 more; surplus tensors: b"):
        check_tensors("x", {"missing_keys": {f"a{n}" for n in range(7)}, "unexpected_keys": {"b"}}, None)


# ------------------------------------------------------------------------------------------------ hashes


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def list_hashes(folder: Path) -> dict[str, str]:
    hashes = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    (folder / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in hashes.items()))
    return hashes


def test_hashes_as_sha256sum_lists_them(folder: Path) -> None:
    assert listed_hashes(folder) == {}
    hashes = list_hashes(folder)
    assert listed_hashes(folder) == hashes
    check_folder(folder)
    with (folder / "model-1.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")  # a flipped bit that only a hash can show
    with pytest.raises(ModelError, match=r"wrong SHA-256 hashes: model-1\.safetensors \(.*; get them again"):
        check_folder(folder)
    (folder / "model-0.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks files that SHA256SUMS lists: model-0\.safetensors"):
        check_folder(folder)


@pytest.mark.parametrize("line", ["abc  model.safetensors", f"{'0' * 64}  ../x", f"{'0' * 64}  /etc/passwd", "\x00"])
def test_a_list_that_is_none(folder: Path, line: str) -> None:
    (folder / "SHA256SUMS").write_text(f"\n{line}\n")
    with pytest.raises(ModelError, match="line 2"):
        check_folder(folder)


def test_hashes_that_the_hub_gave(folder: Path, tmp_path: Path) -> None:
    """Records of a download into a folder, and links into the hub's cache."""
    assert downloaded_hashes(folder) == {}
    records = folder / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (records / "model-0.safetensors.metadata").write_text(f"{'c' * 40}\n{'0' * 64}\n1.0\n")
    (records / "config.json.metadata").write_text(f"{'c' * 40}\n{'0' * 40}\n1.0\n")  # git's own hash: a small file
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    file = folder / "model-1.safetensors"
    name = sha256(file)
    file.rename(blobs / name)
    file.symlink_to(blobs / name)
    assert downloaded_hashes(folder) == {"model-0.safetensors": "0" * 64, "model-1.safetensors": name}
    with pytest.raises(ModelError, match=r"model-0\.safetensors"):
        check_hashes(folder, downloaded_hashes(folder))


# ----------------------------------------------------------------------------------------------- commits


def test_the_commit_of_a_downloaded_folder(folder: Path) -> None:
    assert commit_of_folder(folder, from_cache=False) is None
    assert commit_of_folder(folder, from_cache=True) is None  # "model" is no commit
    record = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'c' * 40}\n{'0' * 40}\n1.0\n")
    assert commit_of_folder(folder, from_cache=False) == "c" * 40


@pytest.mark.parametrize("revision", [None, "v1", "a1" * 20])
def test_the_commit_found_in_the_hubs_cache_is_recorded(revision: str | None, tmp_path: Path) -> None:
    """A cache as the hub's client lays it out, in HF_HOME, and no network."""
    commit = "a1" * 20
    snapshot = tmp_path / "hub" / "models--some--llava" / "snapshots" / commit
    model = loaded(shrunken("llava_1_5_7b"), device="cpu")
    model.module.save_pretrained(snapshot)
    model.processor.save_pretrained(snapshot)
    refs = tmp_path / "hub" / "models--some--llava" / "refs"
    refs.mkdir()
    for name in ("main", "v1"):
        (refs / name).write_text(commit)
    code = "import sys; from tests.models.shipped import loaded, spec\n"
    code += f"made = spec('tiny', weights='pretrained', hub_id='some/llava', revision={revision!r})\n"
    code += "print('commit', loaded(made, device='cpu').facts['revision'])"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert f"commit {commit}" in done.stdout, done.stderr
