"""The page and the tables of a run and of a study, from runs with planted times."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import row, usual, write
from tests.analysis.swept import OUTPUT, PROVENANCE, VISION, sweep, write_run
from vlmbench.analysis.frames import load_runs
from vlmbench.errors import InputError
from vlmbench.records.files import write_json
from vlmbench.report import write_pages, write_report
from vlmbench.report.page import write_page
from vlmbench.report.paper_tables import markdown, tex, write_tables
from vlmbench.report.phase1_summary import summarise
from vlmbench.report.scaling import find
from vlmbench.report.scaling import summarise as summarise_scaling
from vlmbench.report.table_cells import Grid, grids, slopes
from vlmbench.report.token_comparison import write_exp5


class Page(HTMLParser):
    """Tags that are opened and closed in order, the links of the page, and its words without style and script."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.links += [v for name in ("src", "href") if (v := found.get(name)) and tag not in ("use", "link")]
        self.ids |= {str(found["id"])} if "id" in found else set()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words += data


def with_summary(run: Path, experiment: str | None = None) -> Path:
    """The summary of a run without its figures; two empty files stand for one."""
    if experiment is None:
        summary = summarise(run)
    else:
        provenance = json.loads((run / "provenance.json").read_text())
        summary = summarise_scaling(find(load_runs(run), provenance), experiment)
    write_json(run / "summary.json", summary)
    (run / "figures").mkdir(exist_ok=True)
    for name in ("launch_bound.png", "launch_bound.pdf"):
        (run / "figures" / name).touch()
    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    with_summary(write(directory / "phase1", usual(60, 40)))
    with_summary(write_run(directory / "phase2", sweep("vision_tokens", VISION)), "phase2_scaling")
    with_summary(write_run(directory / "phase3", sweep("output_tokens", OUTPUT)), "exp4b_language_tokens")
    write_exp5(directory / "phase2", directory / "phase3", directory)
    return directory


def test_a_study_has_one_page_of_all_its_parts(study: Path) -> None:
    page = Page(study / "report.html")
    for part in (
        "at the median of 60 runs",
        "What does one more vision token cost?",
        "What does one more output token cost?",
        "What do tokens cost against each other?",
        "One more output token costs",
        "Where does the time go?",
        "Stages, medians of 60 runs",
        "Where is this from?",
        "planted-vlm (random weights)",
    ):
        assert part in page.words, part
    assert {"phase1", "phase2", "phase3", "exp5_token_comparison", "provenance"} <= page.ids
    assert "None" not in page.words
    assert "nan" not in page.words.lower().replace("provenance", "")
    assert page.words.count("<") == page.words.count("{") == 0


def test_files_beside_the_page_are_named_and_every_link_works_in_a_page_that_is_mailed(study: Path) -> None:
    page = Page(study / "report.html")
    assert {"phase1/figures/*.pdf", "figures/*.pdf", "phase2/summary.json"} <= set(re.findall(r"[\w./*]+", page.words))
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)


def test_tables_of_a_study_are_named_by_part(study: Path) -> None:
    names = {path.name for path in (study / "tables").iterdir()}
    assert {"phase1_components.tex", "phase1_components.md", "phase2_slopes.tex", "token_costs.md"} <= names
    text = (study / "tables" / "phase1_components.tex").read_text()
    assert r"LLM decode & " in text
    assert r"T\_total" in text
    lines = (study / "tables" / "phase1_components.md").read_text().splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1


def test_a_run_has_its_page_and_again_the_same(tmp_path: Path) -> None:
    run = with_summary(write(tmp_path, [row(sample=f"s{i}") for i in range(40)]))
    first = write_page(run).read_bytes()
    assert write_page(run).read_bytes() == first
    assert "Where the latency of planted-vlm (random weights) goes, on Planted GPU" in Page(run / "report.html").words


def test_text_from_records_cannot_become_markup(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}") for i in range(3)]
    rows.append(row(sample="x", status="error", reason="<script>alert(1)</script> & more"))
    text = write_page(with_summary(write(tmp_path, rows))).read_text()
    assert text.count("<script") == 3, "theme, data, script"
    assert "&lt;script&gt;" in text


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no summary\.json"):
        write_page(tmp_path)
    with pytest.raises(InputError, match=r"no summary\.json"):
        write_tables(tmp_path)


def test_a_summary_of_another_version_is_said(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"experiment_name": "phase2_scaling", "headline": {}})
    assert "lacks scaling, too_few_points" in write_pages(tmp_path)
    write_json(tmp_path / "summary.json", {"experiment_name": "phase9"})
    with pytest.raises(InputError, match="is of experiment 'phase9'; a page shows phase1"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_nothing_measured_has_a_page(tmp_path: Path) -> None:
    failed = with_summary(write(tmp_path / "a", [row(status="error", reason="no image")]))
    assert "Nothing could be measured." in Page(write_page(failed)).words
    assert write_tables(failed) == []


def test_without_jinja2_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    run = with_summary(write(tmp_path, [row()]))
    monkeypatch.setattr(builtins, "__import__", missing)
    said = write_pages(run)
    assert said.startswith("No page: ")
    assert "vlmbench-latency[experiments]" in said
    assert not (run / "report.html").exists()


def test_no_report_of_no_kind(tmp_path: Path) -> None:
    assert write_report("none", tmp_path) == ""


def test_cells_are_escaped() -> None:
    grid = Grid(name="g", title="t", columns=(("a", False), ("b", True)), rows=(("  x|y", "1"),))
    assert markdown(grid) == "**t**\n\n| a | b |\n| --- | ---: |\n| &emsp;x\\|y | 1 |\n"
    assert tex("  50 % of T_total × 2") == r"\quad 50 \% of T\_total $\times$ 2"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(study: Path, tmp_path: Path) -> None:
    import subprocess

    body = "\n".join(path.read_text() for path in sorted((study / "tables").glob("*.tex")))
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_peaks_of_stages_are_a_table_where_they_were_watched(tmp_path: Path) -> None:
    rows = sweep("vision_tokens", VISION)
    peaks = {"peak_allocated_vision_encoder_bytes": 2**30, "peak_reserved_vision_encoder_bytes": 3 * 2**29}
    watched = [*rows, rows[0] | {"mode": "trace", **peaks}]
    for name, found in (("with", watched), ("without", rows)):
        write_page(with_summary(write_run(tmp_path / name, found), "phase2_scaling"))
    text = (tmp_path / "with" / "report.html").read_text()
    assert "Peak memory of each stage" in text
    (grid,) = (g for g in grids(json.loads((tmp_path / "with" / "summary.json").read_text())) if g.name == "memory")
    assert grid.rows == (("Vision encoder", "1.00", "1.50", "1", "vision_tokens=64"),)
    assert "Peak memory of each stage" not in (tmp_path / "without" / "report.html").read_text()


def test_a_page_names_all_that_its_sessions_ran_on(tmp_path: Path) -> None:
    """Also where the top of the provenance names the first session only, as older ones do."""
    sessions = [{"device": {"type": "cuda", "name": name}} for name in ("Made GPU", "Other GPU")]
    run = write_run(tmp_path, sweep("vision_tokens", VISION), {**PROVENANCE, "sessions": sessions})
    assert "Made GPU + Other GPU" in write_page(with_summary(run, "phase2_scaling")).read_text()


def test_a_table_of_a_batch_sweep_is_not_of_tokens(tmp_path: Path) -> None:
    rows = sweep("vision_tokens", VISION)
    batch = [row | {"axis_batch_size": 1 + i % 4, "point_id": f"batch_size={1 + i % 4}"} for i, row in enumerate(rows)]
    for row_ in batch:
        del row_["axis_vision_tokens"]
    summary = summarise_scaling(find(load_runs(write_run(tmp_path, batch)), PROVENANCE), "phase2_scaling")
    assert {entry["kind"] for entry in summary["scaling"]} == {"batch"}
    assert slopes(summary).title == "What one more request in the batch costs, ms"


def test_a_table_says_where_a_fit_lies_outside_the_intervals_of_medians_and_what_that_means(tmp_path: Path) -> None:
    rows = sweep("vision_tokens", VISION, repeats=30)
    for one in rows:  # on no curve: every other point is half as long again
        if VISION.index(one["axis_vision_tokens"]) % 2:
            one["T_LLM_decode"] *= 1.5
    summary = summarise_scaling(find(load_runs(write_run(tmp_path, rows)), PROVENANCE), "phase2_scaling")
    made = slopes(summary)
    pulled_in = {cells[1]: cells[[name for name, _ in made.columns].index("outliers pulled in")] for cells in made.rows}
    assert pulled_in["LLM decode"].endswith("); fit outside 9 of 9 medians' intervals")
    assert "medians" not in pulled_in["LLM prefill"]
    assert "(fit outside N of M medians' intervals: M points have a median with a 95 % interval" in made.title
