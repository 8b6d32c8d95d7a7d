"""Peak memory by stage: a planted allocator with known peaks; the real one where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.probes.test_kernels import load_tiny, tiny_request
from vlmbench.probes.memory import MemoryProbe
from vlmbench.probes.memory_stages import Allocator, MemoryStagesProbe, stage_peaks
from vlmbench.probes.stages import Kind
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.schema import TOTAL_STAGES, columns_of
from vlmbench.testing.planted import PlantedModel, Times, request

QUICK = Times(*[0.0] * 9)


class PlantedAllocator:
    """Hands bytes out in blocks of 100, and keeps what it once held, as PyTorch's does."""

    def __init__(self) -> None:
        self.now = self.held = self.most = self.most_held = 0

    def take(self, size: int) -> None:
        self.now += size
        self.held = max(self.held, -(-self.now // 100) * 100)
        self.most, self.most_held = max(self.most, self.now), max(self.most_held, self.held)

    def reset(self) -> None:
        self.most, self.most_held = self.now, self.held

    def peaks(self) -> tuple[int, int]:
        return self.most, self.most_held


class Planted(MemoryStagesProbe):
    planted = PlantedAllocator()

    def applies(self, model: Any) -> bool:
        return True

    def allocator(self, model: Any) -> Allocator:
        return self.planted


def using(module: torch.nn.Module, take: Callable[[int], None], *sizes: int) -> None:
    """While the module runs, it takes (and with negative sizes gives back) this."""
    whole = module.forward

    def forward(*arguments: Any) -> Any:
        for size in sizes:
            take(size)
        return whole(*arguments)

    module.forward = forward  # type: ignore[method-assign]


def watched(model: PlantedModel, tokens: int) -> dict[str, Any]:
    return complete(model, prepare(model, in_memory(request(tokens))), [Planted()], []).values


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> PlantedAllocator:
    found = PlantedAllocator()
    monkeypatch.setattr(Planted, "planted", found)
    found.take(1000)  # weights
    found.take(7000)
    found.take(-7000)  # a peak before the run is none of its own
    return found


def test_each_stage_has_its_own_peak(allocator: PlantedAllocator) -> None:
    model = PlantedModel(QUICK)
    using(model.module.tower, allocator.take, 500, -450)  # leaves 50 of features
    using(model.module.projector, allocator.take, 30, -10)
    using(model.module.language, allocator.take, 40, 8, -40)  # and 8 more of cache at each step
    row = watched(model, tokens=4)
    peaks = {stage: row[f"peak_allocated_{stage}_bytes"] for stage in TOTAL_STAGES}
    assert peaks == {
        "setup": 1000,
        "vision_encoder": 1500,
        "projector": 1080,
        "LLM_prefill": 1070 + 48,
        "LLM_decode": 1070 + 3 * 8 + 48,  # the last of three steps
    }
    assert {row[f"peak_reserved_{stage}_bytes"] for stage in TOTAL_STAGES} == {8000}  # held since before


def test_a_model_without_vision_has_no_peaks_of_it(allocator: PlantedAllocator) -> None:
    model = PlantedModel(QUICK, vision=False)
    using(model.module.language, allocator.take, 40, -40)
    row = watched(model, tokens=2)
    assert row["peak_allocated_LLM_prefill_bytes"] == row["peak_allocated_LLM_decode_bytes"] == 1040
    assert "peak_allocated_vision_encoder_bytes" not in row


def test_a_projector_inside_the_tower_is_told_apart(allocator: PlantedAllocator) -> None:
    model = PlantedModel(QUICK, inside=True, tiles=2)
    inner = model.module.tower.inner
    assert inner is not None
    using(inner, allocator.take, 200, -200)
    using(model.module.tower, allocator.take, 30, -30)
    row = watched(model, tokens=2)
    assert row["peak_allocated_projector_bytes"] == 1200
    assert row["peak_allocated_vision_encoder_bytes"] == 1030


def test_no_hook_stays(allocator: PlantedAllocator) -> None:
    model = PlantedModel(QUICK)
    watched(model, tokens=2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=9, max_size=9))
def test_no_peak_is_lost_or_made(peaks: list[tuple[int, int]]) -> None:
    kinds = [
        Kind.START, Kind.ENTER_VISION, Kind.EXIT_VISION, Kind.ENTER_LANGUAGE, Kind.EXIT_LANGUAGE, Kind.TOKEN,
        Kind.ENTER_LANGUAGE, Kind.EXIT_LANGUAGE, Kind.TOKEN,
    ]  # fmt: skip
    values = stage_peaks([*kinds, Kind.END], [*peaks, (1000, 1000)], num_output_tokens=2)
    of_the_run = peaks[1:]  # neither before the start nor after the last token
    for column, kind in enumerate(("allocated", "reserved")):
        found = [value for name, value in values.items() if name.startswith(f"peak_{kind}_")]
        assert max(found) == max(peak[column] for peak in of_the_run)
        assert values[f"peak_{kind}_setup_bytes"] == peaks[1][column]
        assert values[f"peak_{kind}_vision_encoder_bytes"] == peaks[2][column]
        assert values[f"peak_{kind}_LLM_decode_bytes"] == max(peak[column] for peak in peaks[6:])


def test_a_cpu_has_none_and_keeps_its_resident_set() -> None:
    model = PlantedModel(QUICK)
    assert not MemoryStagesProbe().applies(model)
    row = complete(model, prepare(model, in_memory(request(2))), [TimelineProbe(), MemoryProbe()], []).values
    assert row["peak_rss_bytes"] > 0
    assert not columns_of("probe memory_stages") & set(row)


@pytest.mark.gpu
def test_peaks_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = load_tiny("cuda")
    asked = in_memory(tiny_request(6))
    for _ in range(2):
        complete(model, prepare(model, asked), [], [])
    row = complete(model, prepare(model, asked), [MemoryStagesProbe()], []).values
    whole = complete(model, prepare(model, asked), [MemoryProbe()], []).values
    peaks = [row[f"peak_allocated_{stage}_bytes"] for stage in TOTAL_STAGES]
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
    assert all(weights <= peak for peak in peaks)
    assert max(peaks) == pytest.approx(whole["peak_memory_allocated_bytes"], rel=0.02)
    for stage in TOTAL_STAGES:
        assert row[f"peak_allocated_{stage}_bytes"] <= row[f"peak_reserved_{stage}_bytes"]
