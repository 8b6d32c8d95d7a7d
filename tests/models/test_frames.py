"""Clips: a real file that is decoded again, what the model sees of it, and who cannot take one."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmbench
from tests.models.shipped import loaded, request, shrunken, spec
from vlmbench.errors import UnreachablePointError
from vlmbench.models.processors import give_video_processor
from vlmbench.runner.execution import prepare
from vlmbench.runner.guards import check_inputs


def test_who_cannot_take_a_clip_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    still = loaded(shrunken("llava_1_5_7b"), device="cpu")
    with pytest.raises(UnreachablePointError, match="LlavaProcessor takes no video"):
        still.resolve(request(frames=4))
    tiny = loaded(spec("tiny"), device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnreachablePointError, match=r"needs av and torchvision.*vlmbench-latency\[video\]"):
        give_video_processor(tiny.processor, "qwen2_5_vl")


def test_an_engine_that_shows_an_image_instead_is_refused() -> None:
    model: Any = loaded(spec("tiny"), device="cpu")
    run = prepare(model, request(size=(56, 56)))
    asked = vars(run) | {"request": request(size=(56, 56), frames=4)}
    with pytest.raises(UnreachablePointError, match="is given images only"):
        check_inputs(model, type(run)(**asked), swept=True)


def test_a_clip_is_a_file_with_as_many_frames_that_move() -> None:
    pytest.importorskip("av")
    from vlmbench.data.clip import decode_clip, encode_clip

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 130, 3), dtype=np.uint8))
    clip = encode_clip(picture, 5)
    assert clip == encode_clip(picture, 5)
    frames = decode_clip(clip)
    assert frames.shape == (5, 84, 112, 3)
    assert (frames[0] != frames[4]).mean() > 0.5


def test_rows_of_clips() -> None:
    pytest.importorskip("av")
    pytest.importorskip("torchvision")
    model = loaded(spec("tiny"), device="cpu")
    run = vlmbench.measure(
        model.module,
        model.processor,
        [request(size=(128, 96)).sample],
        output_tokens=2,
        sweep={"frames": [2, 6]},
        stopping={"min_samples": 2, "max_samples": 2},
        warmup={"max_runs": 0},
        bare_every=0,
        trace_requests=0,
    )
    rows = {point: part.iloc[0] for point, part in run.frame.groupby("point_id", observed=True)}
    short, long = rows["frames=2"], rows["frames=6"]
    assert (short["num_frames"], long["num_frames"], long["num_images"]) == (2, 6, 0)
    assert long["num_vision_patches"] == 4 * long["num_vision_tokens"] == 3 * short["num_vision_patches"]
    assert long["flops_vision_encoder"] > 2 * short["flops_vision_encoder"]
    parts = ("T_video_decode", "T_preprocess", "T_transfer", "T_total", "T_detokenize")
    assert long["T_request"] == pytest.approx(sum(long[part] for part in parts))
    assert long["TTFT"] == pytest.approx(sum(long[part] for part in parts[:3]) + long["TTFT_model"])
