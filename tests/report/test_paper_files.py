"""What a paper inputs: macros of the numbers, references, tables of one unit."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.made import PROVENANCE, usual, write
from vlmbench.report.paper_tables import (
    OF_DATASETS,
    OF_MODELS,
    entries,
    macros,
    references,
    safe,
    tex_macros,
    write_tables,
)
from vlmbench.report.phase1_summary import summarise
from vlmbench.report.table_cells import latency
from vlmbench.text import digits, quantile_cell


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write(tmp_path_factory.mktemp("run"), usual(100, 40))
    (directory / "summary.json").write_text(json.dumps(summarise(directory)))
    write_tables(directory)
    return directory


def read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_macros_hold_value_interval_and_n(run: Path) -> None:
    text = (run / "tables" / "numbers.tex").read_text()
    found = dict(re.findall(r"\\newcommand\{\\(\w+)\}\{(.*)\}", text))
    entry = read(run)["distribution"]["T_total"]["workload"]
    assert found["vbTTotalWorkloadMedian"] == digits(entry["p50"]["value"])
    assert found["vbTTotalWorkloadMedianLow"] == digits(entry["p50"]["low"])
    assert found["vbTTotalWorkloadMedianHigh"] == digits(entry["p50"]["high"])
    assert found["vbTTotalWorkloadN"] == "100"
    assert found["vbTTotalReferenceN"] == "40"
    assert "vbTTotalReferencePNinetyNine" not in found, "40 runs give no P99"
    share = next(row["share"] for row in read(run)["components"] if row["component"] == "T_LLM_decode")
    assert found["vbShareTLLMDecode"] == digits(100 * share)


@given(st.text(max_size=20))
def test_a_macros_name_has_letters_alone(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z]*", safe(text))


def test_names_of_macros() -> None:
    assert safe("T_LLM_decode") == "TLLMDecode"
    assert safe("phase1") == "PhaseOne"
    with pytest.raises(ValueError, match="vbA"):
        tex_macros([("vbA", "1"), ("vbA", "2")])


def test_costs_and_ratios_of_a_comparison_have_macros() -> None:
    cost = {"cost_ms": 22.3, "low": 16.1, "high": 28.5}
    summary = {"comparisons": [{"token_costs": {"output": cost}, "ratios": {"output_over_vision": {"value": 915.0}}}]}
    assert dict(macros(summary, "comparison")) == {
        "vbComparisonCostOfOutputToken": "22.3", "vbComparisonCostOfOutputTokenLow": "16.1",
        "vbComparisonCostOfOutputTokenHigh": "28.5", "vbComparisonRatioOutputOverVision": "915",
    }  # fmt: skip


def test_thousands_have_a_comma_that_tex_sets_tight() -> None:
    summary = {"headline": {"vision": {"slope_ms": 1408.2, "slope_low": 1350.0, "slope_high": 1470.0}}}
    assert dict(macros(summary))["vbMsPerVisionToken"] == "1{,}410"


@pytest.mark.parametrize("value", [4.43, 950.0, 9_580.0, 11_500.0, 250_000.0])
def test_a_table_has_one_unit(value: float) -> None:
    cell = quantile_cell({"value": value, "low": 0.5 * value, "high": 1.5 * value})
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d.,]+", cell)]
    assert numbers == pytest.approx([value, 0.5 * value, 1.5 * value], rel=5e-3)
    assert "s" not in cell


def test_csv_has_the_cells_of_the_table(run: Path) -> None:
    rows = list(csv.reader(io.StringIO((run / "tables" / "latency.csv").read_text())))
    grid = latency(read(run))
    assert rows[0] == [name for name, _ in grid.columns]
    assert rows[1:] == [[cell.strip() for cell in row] for row in grid.rows]


def test_every_known_paper_has_an_entry_and_a_number_of_arxiv() -> None:
    known = entries()
    assert set(OF_MODELS.values()) | set(OF_DATASETS.values()) == set(known)
    for key, entry in known.items():
        assert re.search(r"arXiv:\d{4}\.\d{5}", entry), key
        assert entry.count("{") == entry.count("}"), key


def test_references_are_those_of_the_run() -> None:
    llava = {"model": {"name": "llava_1_5_7b"}, "dataset": {"name": "vqa_v2"}}
    text = references([llava, llava, {"model": {"name": "my_own"}}])
    assert text.count("@") == 2
    assert "Improved Baselines with Visual Instruction Tuning" in text
    assert "Making the {V} in {VQA} Matter" in text
    assert "% no paper is known here for my_own" in text


def test_a_run_of_unknown_models_says_so(run: Path) -> None:
    assert (
        f"% no paper is known here for {PROVENANCE['model']['name']}" in (run / "tables" / "references.bib").read_text()
    )
