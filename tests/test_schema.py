"""The table of columns is what rows hold, what the page says, and what figures are labelled with."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests import forks
from vlmbench.schema import (
    COLUMNS,
    COST_STAGES,
    DECODE_PARTS,
    HOST_PARTS,
    STAGES,
    TOTAL_PARTS,
    TOTAL_STAGES,
    Column,
    column_of,
    label_of,
)

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_made_from_the_table() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "records_page.py"))["records_page"]()
    assert (ROOT / "docs" / "records.md").read_text(encoding="utf-8") == made, (
        "write it anew: python scripts/records_page.py"
    )


def test_every_column_stands_in_the_table_once_and_is_described() -> None:
    names = [name for column in COLUMNS for name in column.names()]
    assert len(names) == len(set(names))
    for column in COLUMNS:
        assert column.meaning, column.name
        assert column.writer, column.name
        assert not (column.name.endswith("_ms") or column.name.startswith("T_")) or column.unit == "ms", column.name
        assert not column.name.endswith("_bytes") or column.unit == "B", column.name


def test_every_key_of_a_run_is_a_known_column(tmp_path: Path) -> None:
    """All probes that work on a CPU, a sweep, a repeated request, bare and traced runs."""
    command = [
        "experiment=phase2", "report=none", "runtime.device=cpu", "runtime.threads=1",
        "sweep.axes={output_tokens:[2,3],images:[1,2]}", "measurement.stopping.min_samples=2",
        "measurement.stopping.max_samples=2", "measurement.stopping.min_time_s=0", "measurement.trace_requests=1",
        "probe=[timeline,memory,clocks,kernels]", "probe.kernels.cpu=true", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = forks.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in rows} == {"instrumented", "bare", "trace"}
    keys = {key for row in rows for key in row}
    unknown = sorted(key for key in keys if (found := column_of(key)) is None or found.until is not None)
    assert not unknown, "describe them in vlmbench/schema/columns.py, then run scripts/records_page.py"


def test_a_family_stands_for_names_that_users_give() -> None:
    found = column_of("axis_processor.max_pixels")
    assert found is not None
    assert found.name == "axis_*"
    assert column_of("axis_batch_size") is not found
    assert column_of("my_own_metric") is None


@pytest.mark.parametrize("name", ["flops_total", "mfu_<stage>"])
def test_stages_are_given_for_families_of_stages_only(name: str) -> None:
    with pytest.raises(ValueError, match="'stages' must be given"):
        Column(name=name, unit="", meaning="x", writer="x", stages=("a",) if "<" not in name else ())


def test_labels() -> None:
    assert label_of("num_vision_tokens") == "vision tokens"
    assert label_of("axis_top_k") == "top k"
    assert label_of("T_LLM_prefill", unit=True) == "LLM prefill, ms"


def test_stages() -> None:
    assert TOTAL_STAGES == ("setup", "vision_encoder", "projector", "LLM_prefill", "LLM_decode")
    assert (*(f"T_{name}" for name in TOTAL_STAGES), "T_answer_out", "T_residual") == TOTAL_PARTS
    assert DECODE_PARTS == ("T_decode_forward", "T_decode_loop")
    assert HOST_PARTS == ("T_video_decode", "T_preprocess", "T_transfer", "T_detokenize")
    assert COST_STAGES == ("vision_encoder", "projector", "llm_prefill", "llm_decode")
    assert len({stage.column for stage in STAGES}) == len(STAGES)
    assert all(column_of(stage.column) for stage in STAGES)


def test_stages_of_the_page_have_a_code_and_two_colours_of_their_own() -> None:
    shown = [stage for stage in STAGES if stage.code]
    assert [stage.column for stage in shown] == [s.column for s in STAGES if s.parent != "T_LLM_decode"]
    for which in (0, 1):
        assert len({stage.page[which] for stage in shown}) == len(shown)
        assert all(re.fullmatch("#[0-9a-f]{6}", stage.page[which]) for stage in shown)
