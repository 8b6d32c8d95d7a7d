"""Shares of the peaks and distances to the floor, computed from raw rows with a known answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vlmbench.analysis.derived import intensity, mbu, mfu, over_floor, with_derived
from vlmbench.machine.peaks import DevicePeaks

PEAKS = DevicePeaks(device="Made GPU", dtype="bfloat16", flops_per_s=1e15, bytes_per_s=1e12, source="sheet")
ROWS = pd.DataFrame(
    {
        # 2e12 FLOP and 1e9 B need 2 ms of compute, 1 ms of traffic; the second run has no prefill time
        "T_LLM_prefill": [4.0, np.nan, 2.5],
        "flops_llm_prefill": [2e12, 2e12, 2e12],
        "bytes_llm_prefill": [1e9, 1e9, 1e9],
        "floor_ms_llm_prefill": [2.0, 2.0, 0.0],
    }
)


def test_known_answers() -> None:
    np.testing.assert_allclose(mfu(ROWS, "llm_prefill", PEAKS), [0.5, np.nan, 0.8])
    np.testing.assert_allclose(mbu(ROWS, "llm_prefill", PEAKS), [0.25, np.nan, 0.4])
    np.testing.assert_allclose(intensity(ROWS, "llm_prefill"), [2000.0] * 3)
    np.testing.assert_allclose(over_floor(ROWS, "llm_prefill"), [2.0, np.nan, np.nan])


def test_a_frame_gets_the_columns_that_rows_used_to_hold() -> None:
    old = ROWS.assign(mfu_llm_prefill=9.0, mfu_llm_decode=0.1)
    found = with_derived(old, PEAKS, busy_share={"llm_prefill": 0.9})
    np.testing.assert_allclose(found["mfu_llm_prefill"], [0.5, np.nan, 0.8])
    assert found["verdict_llm_prefill"].dropna().to_dict() == {0: "compute-bound", 2: "compute-bound"}
    assert found["mfu_llm_decode"].eq(0.1).all()  # nothing to compute it from: what the file says stays
    assert not [name for name in found if name.endswith("vision_encoder")]
    assert len(set(found.columns)) == len(found.columns)


def test_without_peaks_there_are_no_shares() -> None:
    found = with_derived(ROWS, None)
    assert {"intensity_llm_prefill", "over_floor_llm_prefill"} <= set(found)
    assert not [name for name in found if name.startswith(("mfu_", "mbu_", "verdict_"))]


@pytest.mark.parametrize("share", [0.2, None])
def test_a_slow_stage_is_told_apart_by_traced_runs_only(share: float | None) -> None:
    slow = ROWS.assign(T_LLM_prefill=[40.0, 40.0, 40.0])
    busy = None if share is None else {"llm_prefill": share}
    verdicts = set(with_derived(slow, PEAKS, busy_share=busy)["verdict_llm_prefill"])
    assert verdicts == ({"launch-bound"} if share else {"launch- or latency-bound (not told apart)"})
