"""NVTX ranges: opened and closed in pairs, each stage under its name."""

from __future__ import annotations

import pytest

from vlmbench.errors import ConfigError
from vlmbench.probes.nvtx import Ranges, check_nvtx
from vlmbench.probes.stages import Kind
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.testing.planted import PlantedModel

ONE = [Kind.ENTER_FORWARD, Kind.ENTER_LANGUAGE, Kind.EXIT_FORWARD, Kind.TOKEN]
VISION = [Kind.ENTER_FORWARD, Kind.ENTER_VISION, Kind.EXIT_VISION, Kind.ENTER_PROJECTOR, Kind.EXIT_PROJECTOR, *ONE[1:]]


def said(kinds: list[Kind], *, vision: bool) -> tuple[list[str], int]:
    """Names of the ranges in the order opened, each with the depth it was opened at; how many stay open."""
    names: list[str] = []
    depth = 0

    def push(name: str) -> None:
        nonlocal depth
        names.append(f"{'  ' * depth}{name}")
        depth += 1

    def pop() -> None:
        nonlocal depth
        depth -= 1

    ranges = Ranges(push, pop, vision=vision)
    for kind in kinds:
        ranges.mark(kind)
    return names, depth


def test_each_stage_has_its_range_and_the_decode_one_a_token() -> None:
    names, open_ = said([Kind.START, *VISION, *ONE, *ONE, Kind.END], vision=True)
    assert names == [
        "setup", "vision_encoder", "LLM_prefill", "projector", "LLM_prefill", "LLM_decode", "  token 2", "  token 3",
        "  token 4",
    ]  # fmt: skip
    assert open_ == 0


def test_without_vision_the_first_forward_ends_the_setup() -> None:
    names, open_ = said([Kind.START, *ONE, Kind.END], vision=False)
    assert names == ["setup", "LLM_prefill", "LLM_decode", "  token 2"]
    assert open_ == 0


def test_a_model_that_is_on_no_gpu_refuses_them() -> None:
    with pytest.raises(ConfigError, match="must be false on device 'cpu'"):
        TimelineProbe(nvtx=True).applies(PlantedModel())
    check_nvtx("cuda")
