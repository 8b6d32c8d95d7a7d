"""The README's YAML for a model of one's own, typed as it stands there, on a checkpoint made here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests import forks
from tests.models.shipped import loaded, shrunken

USAGE = Path(__file__).parents[2] / "docs" / "usage.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = loaded(shrunken("llava_1_5_7b"), device="cpu")
    model.module.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def usage_yaml(*, anatomy: bool) -> str:
    """The block, with the lines on a custom anatomy in force or not."""
    found = re.search(r"```yaml\n(# conf/model/mine\.yaml\n.*?)```", USAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    text = found[1]
    if anatomy:
        text = re.sub(r"^anatomy: null.*\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"^# (anatomy:|  )", r"\1", text, flags=re.MULTILINE)
    return text


@pytest.mark.parametrize("anatomy", [False, True], ids=["by rule", "three paths"])
def test_one_yaml_adds_a_model(anatomy: bool, checkpoint: Path, tmp_path: Path) -> None:
    text = usage_yaml(anatomy=anatomy)
    assert len(yaml.safe_load(text)["anatomy"] or ()) == (3 if anatomy else 0)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text(text, encoding="utf-8")
    command = ("--config-dir", "own", "experiment=anatomy", "model=mine", f"model.path={checkpoint}")
    done = forks.run(*command, "runtime.device=cpu", cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "Anatomy of mine" in done.stdout
    assert done.stdout.count("override") == (3 if anatomy else 0)
    for path in ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head"):
        assert path in done.stdout
