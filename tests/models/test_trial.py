"""Processors and tokenizers of another model are found out before the first request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.models.shipped import loaded, shrunken, spec
from vlmbench.errors import ModelError
from vlmbench.models.offline_tokenizer import build_tokenizer
from vlmbench.models.transformers_model import TransformersModel


@pytest.fixture(scope="module")
def llava() -> TransformersModel:
    return loaded(shrunken("llava_1_5_7b"), device="cpu")


@pytest.fixture
def folder(llava: TransformersModel, tmp_path: Path) -> Path:
    llava.module.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    return tmp_path


def pretrained(folder: Path, **changes: Any) -> TransformersModel:
    return loaded(spec("tiny", weights="pretrained", path=str(folder), **changes), device="cpu")


def test_its_own_processor_passes(folder: Path) -> None:
    assert pretrained(folder).facts["processor"] == "LlavaProcessor"


def test_an_image_processor_of_another_model(folder: Path) -> None:
    """Without processor_config.json transformers builds the right class around the wrong image processor."""
    (folder / "processor_config.json").unlink()
    loaded(spec("tiny"), device="cpu").processor.image_processor.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"LlavaProcessor with Qwen2VLImageProcessor.* belong to the model\?"):
        pretrained(folder)


def test_a_tokenizer_with_ids_beyond_the_embedding(folder: Path, llava: TransformersModel) -> None:
    rows = llava.module.get_input_embeddings().num_embeddings
    config = json.loads((folder / "config.json").read_text())
    special = {"<image>": config["image_token_index"], "<s>": rows + 7, "</s>": 2, "<pad>": 3}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}
    build_tokenizer(size=rows + 8, special_tokens=special, roles=roles).save_pretrained(folder)
    template = "{% for m in messages %}<s>{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    template += "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=rf"gives the id {rows + 7}, but the model has {rows:,} embeddings"):
        pretrained(folder)


def test_the_processor_of_another_model_than_a_registered_one(tmp_path: Path, llava: TransformersModel) -> None:
    """Molmo 1 is not in transformers' own table of processors."""
    from tests.models.molmo.conftest import write_released
    from vlmbench.models.molmo.convert import convert_checkpoint

    convert_checkpoint(write_released(tmp_path / "released", "qwen2"), tmp_path / "made")
    for file in (tmp_path / "made").iterdir():
        if "token" in file.name or "process" in file.name:
            file.unlink()
    llava.processor.save_pretrained(tmp_path / "made")
    with pytest.raises(
        ModelError, match=r"LlavaProcessor\) does not belong to the model: 'molmo' needs MolmoProcessor"
    ):
        pretrained(tmp_path / "made", plugin="vlmbench.models.molmo")
    shutil.rmtree(tmp_path / "made")
