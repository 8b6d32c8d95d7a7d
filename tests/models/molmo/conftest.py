"""Tiny Molmo checkpoints whose weights follow a formula over their key names, as the reference's did."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vlmbench.models.molmo  # noqa: F401  # registers the model type
from vlmbench.models.molmo.convert import convert_checkpoint
from vlmbench.models.offline_tokenizer import build_tokenizer

FAMILIES = ("olmoe", "olmo2", "qwen2")
ORACLES = json.loads(Path(__file__).with_name("oracles.json").read_text(encoding="utf-8"))
CASES = {case["family"]: case for case in ORACLES["cases"]}


def synthetic_image(width: int, height: int) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :3]
    return ((3 * x + 5 * y + 40 * c) % 256).astype(np.uint8)


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith(("norm.weight", "ln_f.weight", "pre_ln.weight")):
        z = 1 + 0.1 * z
    elif key.endswith(("norm.bias", "pre_ln.bias")):
        z = 0.1 * z
    elif "wte." in key:
        z = 0.5 * z
    else:
        z = 0.8 * z / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3 * z
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def released_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Keys of the hub layout with their shapes; # in the oracle stands for every index."""
    case = CASES[family]
    dims = case["dims"]
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern, shape in case["key_shapes"].items():
        counts = [dims[n] for n in ("vit_layers" if "resblocks" in pattern else "n_layers", "n_experts")]
        for indices in itertools.product(*(range(n) for n in counts[: pattern.count("#")])):
            numbers = iter(indices)
            shapes[re.sub("#", lambda _, n=numbers: str(next(n)), pattern)] = tuple(shape)
    assert len(shapes) == case["n_keys"]
    return shapes


def released_weights(family: str) -> dict[str, torch.Tensor]:
    return {key: weight(key, shape) for key, shape in released_shapes(family).items()}


def released_config(family: str) -> dict[str, Any]:
    """config.json as the hub has it (7B) or as MolmoE has it."""
    dims = CASES[family]["dims"]
    vision = {
        "image_emb_dim": dims["vit_dim"],
        "image_num_heads": dims["vit_heads"],
        "image_mlp_dim": dims["vit_mlp"],
        "image_num_layers": dims["vit_layers"],
    }
    common = {
        "model_type": "molmo",
        "auto_map": {"AutoConfig": "config_molmo.MolmoConfig"},
        "vocab_size": dims["vocab_size"],
        "embedding_size": dims["embedding_size"],
        "additional_vocab_size": dims["additional_vocab"],
        "layer_norm_eps": dims["rms_eps"],
        "layer_norm_type": "rms",
        "rope_theta": dims["rope_theta"],
        "clip_qkv": None,
        "weight_tying": False,
        "vision_backbone": vision,
    }
    if family == "olmoe":
        moe = {"block_type": "moe", "moe_num_experts": dims["n_experts"], "moe_top_k": dims["top_k"]}
        # mlp_hidden_size is that of gate and up together
        sizes = {
            "d_model": dims["d_model"],
            "n_layers": dims["n_layers"],
            "n_heads": dims["n_heads"],
            "n_kv_heads": None,
        }
        return {**common, **moe, **sizes, "mlp_hidden_size": 2 * dims["ffn_gate_width"], "attention_layer_norm": True}
    qwen2 = family == "qwen2"
    return {
        **common,
        "hidden_size": dims["d_model"],
        "num_hidden_layers": dims["n_layers"],
        "num_attention_heads": dims["n_heads"],
        "num_key_value_heads": dims["n_kv_heads"],
        "intermediate_size": 2 * dims["ffn_gate_width"],
        "qkv_bias": qwen2,
        "attention_layer_norm": not qwen2,
        "norm_after": not qwen2,
    }


def make_tokenizer(first: int, **roles: str) -> Any:
    names = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
    special = {"<|pad|>": 1, "<|endoftext|>": 5, **{name: first + i for i, name in enumerate(names)}}
    return build_tokenizer(size=first, special_tokens=special, roles={"eos_token": "<|endoftext|>", **roles})


def write_released(folder: Path, family: str, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """A checkpoint folder as released: config.json, tokenizer, and (unless written elsewhere) model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released_config(family)), encoding="utf-8")
    make_tokenizer(CASES[family]["dims"]["vocab_size"]).save_pretrained(folder)
    if weights is None:
        save_file(released_weights(family), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def oracles() -> dict[str, Any]:
    return ORACLES


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("released")
    return {family: write_released(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def converted(released: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("converted")
    for family, source in released.items():
        convert_checkpoint(source, root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="session")
def load(converted: dict[str, Path]) -> Iterator[Callable[[str], Any]]:
    """Models of the converted folders, each loaded once."""
    from transformers import AutoModelForImageTextToText

    loaded: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in loaded:
            loaded[family] = AutoModelForImageTextToText.from_pretrained(converted[family]).eval()
        return loaded[family]

    yield get
    loaded.clear()


@pytest.fixture(scope="session")
def processors(converted: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoProcessor

    return {family: AutoProcessor.from_pretrained(folder) for family, folder in converted.items()}


@pytest.fixture
def case_inputs(processors: dict[str, Any]) -> Callable[[str], dict[str, torch.Tensor]]:
    """Inputs of an oracle case: its image and, in place of a text, its text ids."""

    def make(family: str) -> dict[str, torch.Tensor]:
        case = CASES[family]
        made = processors[family](images=synthetic_image(*case["size_wh"]), text="x")
        length = case["input_len"] - len(case["text_ids"])
        ids = torch.cat([made["input_ids"][:, :length], torch.tensor([case["text_ids"]])], dim=1)
        return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return make
