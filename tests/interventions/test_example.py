"""The method in the documents: short, a plug-in, and equal to the shipped one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interventions.test_dropping import hooks, model_of, run
from vlmbench.interventions.keep_in_layer import KeepInLayer
from vlmbench.interventions.proof import prove
from vlmbench.interventions.protocol import Intervention, KeepsTokens
from vlmbench.runner.arms import controls_of

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "intervention_example" / "vlmbench_fastv" / "__init__.py"


@pytest.fixture(scope="module")
def fastv() -> Any:
    found = importlib.util.spec_from_file_location("vlmbench_fastv", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    import sys

    sys.modules["vlmbench_fastv"] = module
    found.loader.exec_module(module)
    return module.FastV


def test_it_takes_fewer_than_80_lines() -> None:
    code = FILE.read_text(encoding="utf-8").split("@dataclass")[1]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 80


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_it_proves_itself_and_is_the_shipped_method(fastv: Any, family: str) -> None:
    model = model_of(family)
    method = fastv(keep=0.25)
    assert isinstance(method, Intervention)
    assert isinstance(method, KeepsTokens)
    assert prove(model, method, model.prepared()).holds
    tokens, values = run(model, method, tokens=8)
    own_tokens, own_values = run(model, KeepInLayer(keep=0.25, layer=2), tokens=8)
    assert torch.equal(tokens, own_tokens)
    assert values == own_values
    assert hooks(model.module) == 0


def test_it_gets_controls(fastv: Any) -> None:
    assert [(control.name, control.arguments["keep"]) for control in controls_of(fastv(keep=0.25))] == [
        ("keep_after_projector", 0.25),
        ("downsample", 0.25),
    ]


def test_commands_of_the_page_name_what_exists() -> None:
    text = (ROOT / "docs" / "interventions.md").read_text(encoding="utf-8")
    for name in re.findall(r"intervention=([a-z_]+)", text):
        assert (ROOT / "conf" / "intervention" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"model=([a-z0-9_]+)", text):
        assert (ROOT / "conf" / "model" / f"{name}.yaml").is_file(), name
