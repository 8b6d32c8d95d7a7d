"""Floors are bounds: the causal half of attention, by brute force and against the published excess."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.models.shipped import spec
from vlmbench.analysis.derived import mfu, needed
from vlmbench.cost.decoder_formula import ClosedForm, Decoder, decoder_of
from vlmbench.cost.stage_costs import StageFlops
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.models.loading import build_config
from vlmbench.request import TokenCounts


@pytest.mark.parametrize("windows", [(), (None, 3, 100)])
def test_by_brute_force(windows: tuple[int | None, ...]) -> None:
    layers, heads, head_dim, tokens = 3, 4, 8, 11
    decoder = Decoder(
        hidden=32,
        intermediate=64,
        layers=layers,
        heads=heads,
        kv_heads=2,
        head_dim=head_dim,
        vocab=100,
        windows=windows,
    )
    pairs = sum(
        1
        for window in windows or (None,) * layers
        for query in range(tokens)
        for key in range(tokens)
        if key <= query and (window is None or query - key < window)
    )
    assert decoder.masked(tokens) == 4 * heads * head_dim * (layers * tokens * tokens - pairs)


@pytest.mark.parametrize(
    ("model", "tokens", "excess"),
    [
        ("llava_1_5_7b", 612, 0.012),
        ("llava_1_5_7b", 4096, 0.077),
        ("qwen2_5_vl_7b", 4096, 0.059),
        ("qwen2_5_vl_7b", 16384, 0.20),
        ("smolvlm_256m", 612, 0.09),
        ("smolvlm_256m", 2048, 0.25),
    ],
)
def test_counted_in_full_a_floor_is_that_much_too_high(model: str, tokens: int, excess: float) -> None:
    decoder = decoder_of(build_config(spec(model)))
    full = decoder.prefill(tokens)
    assert full / (full - decoder.masked(tokens)) - 1 == pytest.approx(excess, rel=0.1)


def test_only_the_prefill_needs_less() -> None:
    closed = ClosedForm(decoder=decoder_of(build_config(spec("llava_1_5_7b"))), vision=None)
    counts = TokenCounts(num_input_tokens=612, num_prompt_tokens=36, num_vision_tokens=576)
    flops = StageFlops(vision_encoder=5, projector=6, llm_prefill=10**15, llm_decode=8, head=9)
    found = closed.needed(flops, counts, batch_size=4)
    assert flops.llm_prefill - found.llm_prefill == 4 * closed.decoder.masked(612)
    assert (found.vision_encoder, found.projector, found.llm_decode, found.head) == (5, 6, 8, 9)


def test_mfu_takes_what_is_needed_and_rows_without_it_the_whole() -> None:
    peaks = DevicePeaks(device="planted", dtype="bfloat16", flops_per_s=1e12, bytes_per_s=1e12, source="planted")
    frame = pd.DataFrame(
        {"flops_llm_prefill": [1e9, 1e9], "flops_llm_prefill_needed": [5e8, np.nan], "T_LLM_prefill": [1.0, 1.0]}
    )
    assert needed(frame, "llm_prefill").tolist() == [5e8, 1e9]
    assert mfu(frame, "llm_prefill", peaks).tolist() == [0.5, 1.0]
