"""Marks beside an engine's own figures: planted ratios come back, and silence where the engine says nothing."""

from __future__ import annotations

import pandas as pd
import pytest

from vlmbench.analysis.engine_figures import agreement_words, engine_agreement


def rows(**columns: object) -> pd.DataFrame:
    common = {"status": "ok", "mode": "instrumented", "point_id": "dataset", "sample_id": [str(i) for i in range(30)]}
    return pd.DataFrame({**common, **columns})


def test_planted_ratios_come_back() -> None:
    frame = rows(
        T_vision_encoder=[9.0] * 30, T_projector=[0.9] * 30, engine_encoder_forward=[10.0] * 30,
        T_LLM_decode=[20.0] * 30, engine_decode_time=[20.0] * 29 + [float("nan")],
    )  # fmt: skip
    encoder, decode = engine_agreement(frame)
    assert (encoder["what"], encoder["runs"]) == ("vision encoder with projector", 30)
    assert encoder["ratio"]["value"] == pytest.approx(0.99)
    assert (decode["ratio"]["value"], decode["runs"]) == (1.0, 29)
    assert agreement_words([encoder, decode]) == [
        "The marks beside the engine's own figures, medians: vision encoder with projector 0.9900 × "
        "engine_encoder_forward (0.9900–0.9900, 30 runs); first until last token 1.0000 × engine_decode_time "
        "(1.0000–1.0000, 29 runs)."
    ]


def test_an_engine_without_figures_is_not_spoken_of() -> None:
    assert engine_agreement(rows(T_LLM_decode=[20.0] * 30)) == []
    assert agreement_words([]) == agreement_words([], asynchronous=True) == []


def test_an_engine_that_reads_tokens_a_step_later_is_said_to() -> None:
    decode = engine_agreement(rows(T_LLM_decode=[20.0] * 30, engine_decode_time=[19.0] * 30))
    assert agreement_words(decode, asynchronous=True)[1].startswith("With asynchronous scheduling the engine reads")
