"""From a runtime's YAML to what runs requests: settings refused early, runs with their capture apart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.test_runner import dataset, measure
from vlmbench.cli.config import register
from vlmbench.engines import choice
from vlmbench.errors import ConfigError
from vlmbench.models.protocol import Prepared
from vlmbench.records.reading import iter_rows
from vlmbench.session.settings import RuntimeConfig
from vlmbench.testing.planted import PlantedModel

EAGER: dict[str, Any] = {
    "name": "eager",
    "device": "cpu",
    "dtype": "auto",
    "attn_implementation": "sdpa",
    "experts_implementation": None,
    "cache_implementation": None,
    "compile": False,
    "device_map": None,
    "tp_plan": None,
    "threads": 1,
    "strict_device": False,
}


def test_every_engine_of_ours_is_there() -> None:
    register()
    assert all(callable(choice.engine(name)) for name in choice.OWN)


def test_an_unknown_engine_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="'warp' is no entry point"):
        choice.engine("warp")
    with pytest.raises(ValueError, match=r"'runtime.engine' must be one of transformers, cudagraph"):
        RuntimeConfig(**EAGER, engine="warp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "transformers", "decode_compile": True}, r"'runtime.decode_compile' must be false"),
        ({"engine": "transformers", "prefill_compile": True}, r"'runtime.prefill_compile' must be false"),
        (
            {"engine": "cudagraph", "prefill_compile": True, "capture": ["projector"]},
            r"'runtime.prefill_compile' needs language_model",
        ),
        ({"engine": "cudagraph", "device_map": "auto"}, r"'runtime.device_map' must be null"),
        ({"engine": "cudagraph", "tp_plan": "auto"}, r"'runtime.tp_plan' must be null"),
        ({"engine": "cudagraph", "cache_implementation": "static"}, r"'runtime.cache_implementation' must be null"),
        ({"engine": "cudagraph", "compile": True}, r"'runtime.compile' must be false"),
        ({"engine": "cudagraph", "cache_step": 0}, r"'runtime.cache_step' must be 1 or more"),
        ({"engine": "cudagraph", "capture": ["head"]}, r"'runtime.capture' must be one of vision_encoder"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**{**EAGER, **settings})


def test_a_run_keeps_what_capturing_took_apart(
    vlmbench_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = vlmbench_forked(
        "experiment=phase2",
        "runtime=cudagraph",
        "runtime.device=cpu",
        "runtime.threads=1",
        "sweep.axes.vision_tokens=[16,64,144]",
        "measurement.stopping.min_samples=3",
        "measurement.stopping.max_samples=3",
        "output.tokens=6",
        "output_dir=out",
        "report=none",
    )
    assert done.returncode == 0, done.stderr
    rows = list(iter_rows(tmp_path / "out"))
    kept = [row for row in rows if row["status"] == "ok"]
    assert kept
    assert all(row["runtime"] == "cudagraph" for row in rows)
    assert all("T_capture" not in row and "captured_again" not in row["flags"] for row in kept)
    assert any("T_capture" in row for row in rows if row["status"] in ("warmup", "cold"))
    named = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
    for row in kept:
        if row["mode"] == "instrumented":
            assert row["T_decode_forward"] + row["T_decode_loop"] == pytest.approx(row["T_LLM_decode"])
            assert sum(row[name] for name in named) + row["T_residual"] == pytest.approx(row["T_total"])
    facts = json.loads((tmp_path / "out" / "provenance.json").read_bytes())["sessions"][-1]["engine"]
    assert facts["captured"] is False
    assert facts["capture_s"] > 0
    assert facts["decode"]["windows"] == [[1, 256]]


class _Captures(PlantedModel):
    """Captures in every run, as a loop does whose warm-up missed something."""

    def ready(self, prepared: Prepared) -> Mapping[str, Any]:
        return {"T_capture": 1.5}


def test_capturing_outside_warm_up_is_flagged(tmp_path: Path) -> None:
    _, rows = measure(tmp_path, _Captures(), dataset(2))
    for row in rows:
        assert row["T_capture"] == 1.5
        assert ("captured_again" in row["flags"]) == (row["status"] == "ok")
