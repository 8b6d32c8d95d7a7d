"""Attention: one implementation for each tower, and the kernels that torch may choose from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.models.shipped import loaded, spec
from vlmbench.models.attention import SDPA_BACKENDS, allow_backends, allowed_backends
from vlmbench.models.runtime import Runtime
from vlmbench.records.comparable import differences, identity, unlike


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = allowed_backends()
    yield
    allow_backends(None)
    assert allowed_backends() == before


def test_only_the_named_kernels_are_allowed_and_null_takes_it_back() -> None:
    before = allowed_backends()
    allow_backends(("flash", "math"))
    assert allowed_backends() == "flash, math"
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    allow_backends(("math",))
    assert allowed_backends() == "math"
    allow_backends(None)
    assert allowed_backends() == before


def test_a_switch_that_the_caller_set_is_left_alone() -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        allow_backends(None)
        assert "cudnn" not in allowed_backends()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("wrong", [(), ("flsh",)])
def test_a_kernel_that_does_not_exist_is_refused_by_name(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"'runtime.sdpa_backends' must .*{', '.join(SDPA_BACKENDS)}"):
        Runtime(sdpa_backends=wrong)


def test_towers_differ_where_they_were_asked_to() -> None:
    """transformers#47917, #32238: the top configuration's attention is not what each tower runs."""
    one = loaded(
        spec("tiny"), device="cpu", attn_implementation={"text_config": "sdpa", "vision_config": "eager"},
        sdpa_backends=("flash", "math"),
    )  # fmt: skip
    assert one.facts["attention_by_tower"] == {"vision_encoder": "eager", "language_model": "sdpa"}
    assert one.facts["sdpa_backends"] == "flash, math"


def test_a_tower_changed_after_loading_is_seen_and_makes_runs_unlike() -> None:
    plain, changed = loaded(spec("tiny"), device="cpu"), loaded(spec("tiny"), device="cpu")
    changed.module.config.vision_config._attn_implementation = "eager"
    assert plain.facts["attention_by_tower"] == {"vision_encoder": "sdpa", "language_model": "sdpa"}
    assert changed.facts["attention_by_tower"] == {"vision_encoder": "eager", "language_model": "sdpa"}
    found = unlike([{"model": dict(one.facts)} for one in (plain, changed)])
    assert found == {
        "runtime.attention_by_tower": [
            "language_model sdpa; vision_encoder sdpa",
            "language_model sdpa; vision_encoder eager",
        ]
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"software": {"packages": {"torch": "2.9.0"}, "cudnn": "91002"}}, "software.torch: 2.13.0 against 2.9.0"),
        ({"software": {"packages": {"torch": "2.13.0"}, "cudnn": "90100"}}, "software.cudnn: 91002 against 90100"),
        ({"device": {"name": "H200", "driver": "570.1"}}, "device.driver: 580.2 against 570.1"),
        ({"runtime": {"sdpa_backends": "flash, math"}}, "runtime.sdpa_backends: flash, efficient, math, cudnn against"),
    ],
)
def test_torch_cudnn_driver_and_kernels_make_runs_unlike(change: dict[str, object], says: str) -> None:
    """pytorch#174051: an encoder fell on a slow path with one torch and cuDNN."""
    whole = {
        "software": {"packages": {"torch": "2.13.0", "numpy": "2.1"}, "cudnn": "91002"},
        "device": {"name": "H200", "driver": "580.2"},
        "runtime": {"sdpa_backends": "flash, efficient, math, cudnn"},
    }
    (found,) = differences(whole, {**whole, **change})
    assert found.startswith(says)
    assert not differences(whole, {})
    assert not differences(whole, {**whole, "software": {**whole["software"], "packages": {"torch": "2.13.0"}}})


def test_what_was_asked_for_by_part_is_not_compared_where_what_came_of_it_is_known() -> None:
    asked = {"runtime": {"attn_implementation": {"text_config": "sdpa"}, "attention": "sdpa"}}
    assert identity(asked) == {"runtime.attention": "sdpa", "runtime.engine": "transformers"}
