"""A model's YAML as a folder that servers open: what is written loads again, and prepares requests as before."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from PIL import Image

from tests import forks
from vlmbench.errors import InputError, ModelError
from vlmbench.models.export import export
from vlmbench.models.loading import load, weightless
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.request import ImageSource, Output, Request, Sample

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
FLOAT = Runtime(device="cpu", dtype="float32")


def spec_of(model: str, **changes: Any) -> ModelSpec:
    content = yaml.safe_load((CONF / f"{model}.yaml").read_text(encoding="utf-8"))
    content.pop("_target_")
    return ModelSpec(**{**content, **changes})


def request_of(tokens: int = 4) -> Request:
    buffer = io.BytesIO()
    Image.effect_noise((90, 70), 80).convert("RGB").save(buffer, "PNG")
    data = buffer.getvalue()
    image = ImageSource(name="noise", read=lambda: data)
    sample = Sample(sample_id="one", question="What is in this picture?", images=(image,))
    return Request(sample=sample, output=Output(max_new_tokens=tokens, forced=True))


@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b", "smolvlm_256m"])
def test_what_is_written_prepares_the_same_tokens(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    folder = export(spec, tmp_path / name, runtime=FLOAT, weights=False, seed=0)
    assert not list(folder.glob("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(weightless(spec).module).__name__]
    assert config["dtype"] == "float32"
    video = folder / "video_preprocessor_config.json"
    assert video.is_file() == (name == "qwen2_5_vl_7b")
    if video.is_file():
        assert json.loads(video.read_text())["video_processor_type"] == "Qwen2VLVideoProcessor"
    # read back as a checkpoint without weights, by AutoConfig and the processor's own from_pretrained
    read = weightless(ModelSpec(name=name, weights="pretrained", path=str(folder), config={}, processor={}))
    request = request_of()
    before, after = (model.prepare(request).inputs for model in (weightless(spec), read))
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(after[key], value)


def test_random_weights_are_those_of_the_same_seed(tmp_path: Path) -> None:
    spec = spec_of("tiny")
    folder = export(spec, tmp_path / "tiny", runtime=FLOAT, weights=True, seed=3)
    written = transformers.AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    made = load(spec, FLOAT, seed=3).module.state_dict()
    assert written.keys() == made.keys()
    assert all(torch.equal(written[name], value) for name, value in made.items())


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a checkpoint: servers open it as it is\nonly models"):
        export(spec_of("tiny", weights="pretrained", path="/nope"), tmp_path, runtime=FLOAT, weights=False, seed=0)
    with pytest.raises(ModelError, match=r"Python of its released checkpoint\nserve that checkpoint"):
        export(spec_of("molmo_7b_d"), tmp_path / "m", runtime=FLOAT, weights=False, seed=0)
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match=r"is not empty.*\ngive a new folder"):
        export(spec_of("tiny"), tmp_path, runtime=FLOAT, weights=False, seed=0)


def test_a_disk_without_room_for_weights_is_said(tmp_path: Path) -> None:
    code = """
import resource, sys
from vlmbench.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
main()
"""
    words = ["experiment=export", "export_weights=true", f"output_dir={tmp_path / 'served'}"]
    done = forks.run(*words, cwd=Path.cwd(), code=code)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "free space, or give another folder"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_folder_and_nothing_else(
    vlmbench_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = vlmbench_forked("experiment=export", "model=tiny", f"output_dir={tmp_path / 'served'}")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "served").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
