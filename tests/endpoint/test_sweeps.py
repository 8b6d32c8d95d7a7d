"""Every axis of a sweep against servers, by the command line, up to figures and words.

The replay server's own figures are planned, so slopes over them are known exactly; llama.cpp's server is real, and
there only counts and structure are looked at. No time that was measured is bounded.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint.llama_server import running
from tests.endpoint.tiny_gguf import VISION_TOKENS
from vlmbench.engines.endpoint.sizes import TOLERANCE
from vlmbench.testing.replay import ReplayServer
from vlmbench.testing.scripts import SCRIPTS

_SHORT = (
    "measurement.stopping.min_samples=4", "measurement.stopping.max_samples=4", "measurement.prompt_tokens=16",
    "figures.formats=[png]", "figures.dpi=72",
)  # fmt: skip
_MISSING = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
needs_llama = [
    pytest.mark.server,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (extra 'servers')"),
]


def _measure(vlmbench_here: Any, url: str, model: str, directory: Path, *more: str) -> tuple[dict[str, Any], str]:
    """Summary and words of a run."""
    settings = (f"runtime.base_url={url}", f"runtime.model={model}", "runtime.proxy=none", f"output_dir={directory}")
    done = vlmbench_here("runtime=endpoint", *settings, *_SHORT, *more)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "summary.json").read_text()), done.stdout


def _rows(directory: Path, status: str = "ok") -> list[dict[str, Any]]:
    rows = (json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines())
    return [row for row in rows if row["status"] == status]


def _counts(directory: Path, axis: str, column: str = "num_input_tokens") -> dict[int, set[int]]:
    """Value aimed at to the counts that were seen."""
    found: dict[int, set[int]] = {}
    for row in _rows(directory):
        found.setdefault(row[f"axis_{axis}"], set()).add(row[column])
    return found


@pytest.mark.parametrize(("dialect", "x"), [("vllm", "num_vision_tokens"), ("llamacpp", "num_input_tokens")])
def test_vision_tokens_are_found_by_asking_and_their_planned_cost_comes_back(
    vlmbench_here: Any, tmp_path: Path, dialect: str, x: str
) -> None:
    with ReplayServer(dialect=dialect, pixels_a_token=28) as server:
        summary, said = _measure(vlmbench_here, server.base_url, "prefill", tmp_path, "experiment=phase2")
    text = 10 + 16 if x == "num_input_tokens" else 0
    counts = _counts(tmp_path, "vision_tokens", x)
    assert counts == {aimed: {aimed + text} for aimed in counts}
    assert len(counts) >= 3
    assert all(aimed in {(side // 28) ** 2 for side in range(56, 1345)} for aimed in counts)
    figure = {"vllm": "server_time_to_first_token_ms", "llamacpp": "server_prompt_ms"}[dialect]
    fits = {fit["stage"]: fit for fit in summary["scaling"]}
    assert fits[figure]["slope_ms"] == pytest.approx(SCRIPTS["prefill"].prompt_ms, rel=1e-3)
    assert fits[figure]["x"] == fits["T_request"]["x"] == x
    assert {"T_request", "TTFT", "TPOT", "T_unattributed"} <= set(fits)
    assert "T_total" not in fits
    assert "What does one more vision token cost?" in said
    assert "absent here, not zero" in said
    assert (tmp_path / "figures" / "vision_tokens_latency.png").is_file()


def test_counts_that_no_image_makes_are_skipped(vlmbench_here: Any, tmp_path: Path) -> None:
    with ReplayServer(dialect="vllm", pixels_a_token=28) as server:
        axis = "sweep.axes.vision_tokens=[16,81,100,144,162,20000]"
        for _ in range(2):  # the second only goes on
            _, said = _measure(vlmbench_here, server.base_url, "prefill", tmp_path, "experiment=phase2", axis)
            assert "1 row skipped" in said
    seen = _counts(tmp_path, "vision_tokens", "num_vision_tokens")
    assert set(seen) == {16, 81, 100, 144, 162}, "by sizes asked first, sizes between them, or several images"
    assert all(abs(count - aimed) <= TOLERANCE * aimed for aimed, counts in seen.items() for count in counts)
    (skipped,) = _rows(tmp_path, "skipped")
    assert skipped["reason"].startswith("vision_tokens=20000 cannot be reached within 2 % on this server; nearest: ")


def test_a_study_of_a_server_measures_what_is_not_given_and_compares_tokens(vlmbench_here: Any, tmp_path: Path) -> None:
    whole, given = tmp_path / "whole", tmp_path / "given"
    with ReplayServer(dialect="vllm", pixels_a_token=28) as server:
        first, _ = _measure(vlmbench_here, server.base_url, "prefill", whole, "experiment=token_comparison")
        asked = len(server.log)
        results = (f"phase2_results={whole / 'phase2'}", f"phase3_results={whole / 'phase3'}")
        second, _ = _measure(vlmbench_here, server.base_url, "prefill", given, "experiment=token_comparison", *results)
        assert len(server.log) == asked, "what is given is not measured again"
    (row,) = first["comparisons"]
    assert row["token_costs"] == second["comparisons"][0]["token_costs"]
    assert set(row["token_costs"]) == {"vision", "output"}
    assert (given / "figures" / "token_costs.png").is_file()


def test_a_server_that_makes_one_count_of_all_images_is_given_several(vlmbench_here: Any, tmp_path: Path) -> None:
    with ReplayServer(dialect="vllm", vision_tokens=50) as server:
        _measure(vlmbench_here, server.base_url, "prefill", tmp_path, "experiment=phase2")
    assert _counts(tmp_path, "vision_tokens", "num_images") == {50 * n: {n} for n in range(1, 7)}


def test_a_server_that_counts_nothing_has_no_vision_tokens(vlmbench_here: Any, tmp_path: Path) -> None:
    with ReplayServer() as server:
        settings = (f"runtime.base_url={server.base_url}", "runtime.model=no_usage", "runtime.proxy=none")
        done = vlmbench_here(
            "runtime=endpoint",
            "experiment=phase2",
            *settings,
            "output.policy=natural",
            f"output_dir={tmp_path / 'run'}",
        )
    assert done.returncode == 2
    assert "this server makes none of images of 56 to 1344 pixels" in done.stderr
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_loads_repeated_in_turns_keep_their_rates(vlmbench_here: Any, tmp_path: Path) -> None:
    """Two loads on a server, two rounds each: what lies between the loads of a point is not its time."""
    with ReplayServer(dialect="vllm") as server:
        summary, said = _measure(
            vlmbench_here, server.base_url, "steady", tmp_path, "experiment=phase2", "sweep=none", "load=closed",
            "sweep.axes.load.concurrency=[1,2]", "measurement.stopping.min_samples=8",
            "measurement.stopping.max_samples=16", "measurement.stopping.min_time_s=60",
        )  # fmt: skip
    loads = {(row["point_id"], row["load_number"]) for row in _rows(tmp_path)}
    assert len(loads) == 4
    points = summary["serving"]["points"]
    assert [point["axis_load.concurrency"] for point in points] == [1, 2]
    for users, point in zip((1, 2), points, strict=True):
        most = users * 1e3 / (SCRIPTS["steady"].ttft_ms + 7 * SCRIPTS["steady"].itl_ms)
        assert 0 < point["requests_per_s"] <= 1.3 * most, "each answer takes the planned time at least"
    assert "Requests with 2 users" in said
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} >= {"pareto", "ttft_throughput"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("llama"), tiles=4) as address:
        yield address


class TestRealServer:
    """llama.cpp's, which cuts a square image of k tiles a side into k² and an overview."""

    pytestmark = needs_llama

    def test_tokens_of_all_kinds_and_what_they_cost_against_each_other(
        self, vlmbench_here: Any, llama: str, tmp_path: Path
    ) -> None:
        vision, output = tmp_path / "vision", tmp_path / "output"
        axis = "sweep.axes.vision_tokens=[80,100,160,272]"
        summary, said = _measure(vlmbench_here, llama, "tiny", vision, "experiment=phase2", axis)
        text = min(min(seen) for seen in _counts(vision, "vision_tokens").values()) - 5 * VISION_TOKENS
        assert _counts(vision, "vision_tokens") == {n: {n + text} for n in (80, 160, 272)}
        assert [row["point_id"] for row in _rows(vision, "skipped")] == ["vision_tokens=100"]
        assert {"T_request", "TTFT", "server_prompt_ms"} <= {fit["stage"] for fit in summary["scaling"]}
        assert "vision_tokens=100 cannot be reached within 2 % on this server; nearest: " in said

        summary, _ = _measure(
            vlmbench_here, llama, "tiny", output, "experiment=phase3", "sweep.axes.output_tokens=[2,4,8]"
        )
        assert _counts(output, "output_tokens", "num_output_tokens") == {n: {n} for n in (2, 4, 8)}
        assert (output / "figures" / "output_tokens_latency.png").is_file()

        together = tmp_path / "together"
        done = vlmbench_here(
            "experiment=token_comparison", f"phase2_results={vision}", f"phase3_results={output}",
            f"output_dir={together}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (row,) = json.loads((together / "summary.json").read_text())["comparisons"]
        assert set(row["token_costs"]) == {"vision", "output"}
        assert row["token_costs"]["output"]["fits"][0]["stage"] == "T_request"
        assert (together / "figures" / "token_costs.png").is_file()

    @pytest.mark.parametrize(
        ("axis", "values", "left_out"),
        [("images", [0, 1, 2, 5], 5), ("prompt_tokens", [2, 8, 32, 900], 900), ("resolution", [56, 112, 168], None)],
    )
    def test_what_the_server_refuses_is_skipped_with_its_reason(
        self, vlmbench_here: Any, llama: str, tmp_path: Path, axis: str, values: list[int], left_out: int | None
    ) -> None:
        asked = f"sweep.axes.{axis}={values}".replace(" ", "")
        more = [] if axis == "resolution" else ["measurement.image_size=[224,224]"]
        summary, said = _measure(
            vlmbench_here, llama, "tiny", tmp_path, "experiment=phase2", "sweep=none", f"+{asked}", *more
        )
        seen = _counts(tmp_path, axis)
        assert set(seen) == set(values) - {left_out}
        assert all(len(counts) == 1 for counts in seen.values()), "repeats of a point have equally many tokens"
        skipped = _rows(tmp_path, "skipped")
        assert [row[f"axis_{axis}"] for row in skipped] == ([] if left_out is None else [left_out])
        assert all("exceeds the available context size" in row["reason"] for row in skipped)
        kind = "prompt" if axis == "prompt_tokens" else "vision"
        assert {fit["kind"] for fit in summary["scaling"]} == {kind}
        assert f"What does one more {kind} token cost?" in said

    @pytest.mark.parametrize(
        ("load", "axis", "values"), [("closed", "concurrency", [1, 4]), ("open", "rate_per_s", [5, 20])]
    )
    def test_loads_are_axes(
        self, vlmbench_here: Any, llama: str, tmp_path: Path, load: str, axis: str, values: list[int]
    ) -> None:
        asked = f"sweep.axes.load.{axis}={values}".replace(" ", "")
        summary, said = _measure(
            vlmbench_here, llama, "tiny", tmp_path, "experiment=phase2", "sweep=none", f"load={load}", asked,
            "measurement.stopping.min_samples=8", "measurement.stopping.max_samples=8",
        )  # fmt: skip
        assert set(_counts(tmp_path, f"load.{axis}")) == set(values)
        assert [point["requests"] for point in summary["serving"]["points"]] == [8, 8]
        assert "What does the server give under this load?" in said
