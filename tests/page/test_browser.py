"""``report.html`` in a real browser, opened from the disk with the network cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import AXE
from tests.page import published

pytestmark = pytest.mark.browser

DRAWN = """[...document.querySelectorAll('.chart')].map(box => [box.id, box.hidden || box.closest('[hidden]') !== null,
  box.querySelectorAll('svg rect, svg circle, svg path, svg line').length])"""
# Filled rectangles and circles of a chart: their colours differ between light and dark.
COLOURS = (
    "getComputedStyle(document.querySelector('#bar svg rect')).fill + getComputedStyle(document.body).backgroundColor"
)


# Words of a chart that a line of it runs through: (words, class of the line).
STRUCK = """id => {
  const svg = document.querySelector(`#${id} svg`), to = svg.getScreenCTM(), found = [];
  for (const line of svg.querySelectorAll('path[fill="none"], path.whisker, path.inkline')) {
    const long = line.getTotalLength();
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBBox();
      for (let at = 0; at <= long; at += 0.5) {
        const p = line.getPointAtLength(at);
        if (p.x > box.x + 1 && p.x < box.x + box.width - 1 && p.y > box.y + 3 && p.y < box.y + box.height - 3) { found.push(text.textContent); break; }
      }
    }
  }
  return found;
}"""


# Names of a chart with the place of the point that each stands nearest to; -1 where a thin line leads to another.
NEAREST = r"""id => {
  const svg = document.querySelector(`#${id} svg`), points = [...svg.querySelectorAll('circle')].map((c) => [c.cx.baseVal.value, c.cy.baseVal.value]);
  return [...svg.querySelectorAll('text.name')].map((text) => {
    const box = text.getBBox(), led = text.previousElementSibling.matches('path[stroke="var(--muted)"]');
    const far = points.map(([x, y]) => Math.hypot(Math.max(box.x - x, 0, x - box.x - box.width), Math.max(box.y + 3 - y, 0, y - box.y - box.height + 3)));
    return [text.textContent.replace(/[\u2068\u2069]/g, ""), led ? -1 : far.indexOf(Math.min(...far))];
  });
}"""


CODES = {"c-vis": "Vision encoder", "c-pro": "Projector", "c-fil": "LLM prefill", "c-dec": "LLM decode"}


def wide(opened: Any) -> Any:
    return opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_every_chart_of_a_study_is_drawn_without_a_request(browser: Any, study_page: Path) -> None:
    opened = browser(study_page)
    drawn = {name: marks for name, hidden, marks in opened.evaluate(DRAWN) if not hidden}
    assert set(drawn) == {
        "bar", "strip", "timeline", "roof", "dots", "curve", "panel-vision", "panel-output", "made", "even", "lane",
    }  # fmt: skip
    assert min(drawn.values()) > 3, drawn
    assert drawn["dots"] >= 400, "each request is a mark"
    assert drawn["lane"] >= 583, "each row is a mark"
    assert opened.requests == [study_page.as_uri()]
    assert opened.errors == []


def test_a_dot_says_its_value_and_a_click_shows_its_timeline(browser: Any, study_page: Path) -> None:
    page = browser(study_page).page
    before = page.locator("#picked").inner_text()
    page.locator("#dots .flagged").first.hover()
    assert "1,510 ms" in page.locator(".tip").inner_text()
    assert "first seen length" in page.locator(".tip").inner_text()
    page.locator("#dots .flagged").first.click()
    after = page.locator("#picked").inner_text()
    assert before != after
    assert "1,510 ms" in after
    assert "1,510 ms" in page.locator("#timeline").get_attribute("aria-label")


def test_buttons_and_keys_choose_requests_and_say_so(browser: Any, study_page: Path) -> None:
    page = browser(study_page).page
    page.get_by_role("button", name="slowest", exact=True).click()
    assert "rank 200 of 200" in page.locator("#picked").inner_text()
    page.locator("#strip").focus()
    page.keyboard.press("Home")
    assert "rank 1 of 200" in page.locator("#picked").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#strip").get_attribute("aria-valuenow") == "2"
    page.locator("#timeline").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#timeline .focusring").count() == 1
    page.locator("#live", has_text="Preprocessing").wait_for(state="attached")
    page.keyboard.press("Escape")
    assert page.locator("#timeline .focusring").count() == 0


def test_filters_zoom_and_stages(browser: Any, study_page: Path) -> None:
    opened = browser(study_page)
    page = opened.page
    rings = page.locator("#dots .ring").count()
    page.locator("#tailcontrols").get_by_role("button", name="one request repeated").click()
    assert rings > 100
    assert page.locator("#dots .ring").count() == 0
    before = page.locator("#dots text").all_inner_texts()
    page.locator("#tailcontrols").get_by_role("button", name="Zoom in").click()
    assert page.locator("#dots text").all_inner_texts() != before
    page.locator("#tailcontrols").get_by_role("button", name="whole").click()
    assert page.locator("#dots text").all_inner_texts() == before
    box = page.locator("#lane svg").bounding_box()
    page.locator("#lane").scroll_into_view_if_needed()
    box = page.locator("#lane svg").bounding_box()
    marks = page.locator("#lane circle").count()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40, steps=4)
    page.mouse.up()
    assert 0 < page.locator("#lane circle").count() < marks / 2
    page.locator("#tokencontrols").get_by_role("button", name="vision encoder").click()
    assert "no measurable cost" in page.locator("#panel-vision").inner_text()
    slider = page.locator("#calc input").last
    said = page.locator("#calc p").first.inner_text()
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("#calc p").first.inner_text() != said
    assert opened.errors == []


def test_a_grid_is_filtered_and_a_chosen_run_is_shown_everywhere(browser: Any, grid_page: Path) -> None:
    opened = browser(grid_page)
    page = opened.page
    rows = page.locator('[data-table="overview"] tbody tr')
    assert rows.count() == 3
    page.select_option('[data-filter="device"]', label="NVIDIA H200")
    assert [row.is_visible() for row in rows.all()].count(True) == 2
    assert "2 of 3 runs" in page.locator("#count").inner_text()
    page.select_option('[data-filter="device"]', label="Intel(R) Xeon(R) Processor")
    assert "84.9\N{NO-BREAK SPACE}ms" in page.locator("#sentences").inner_text()
    assert "dataset.root=vqa" in page.locator("#cmd").inner_text()
    page.select_option('[data-filter="device"]', index=0)
    rows.nth(1).get_by_role("button").click()
    assert "622\N{NO-BREAK SPACE}ms" in page.locator("#sentences").inner_text()
    page.locator('[data-table="overview"] thead button').nth(2).click()
    assert (
        page.locator('[data-table="overview"] tbody tr').first.get_by_role("rowheader").inner_text().startswith("tiny")
    )
    assert opened.errors == []


def test_dark_light_and_the_button(browser: Any, study_page: Path) -> None:
    light, dark = browser(study_page), browser(study_page, dark=True)
    assert light.evaluate(COLOURS) != dark.evaluate(COLOURS)
    dark.page.get_by_role("button", name="Theme: auto").click()
    dark.page.get_by_role("button", name="Theme: dark").click()
    assert dark.evaluate(COLOURS) == light.evaluate(COLOURS)


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_sideways_scroll(browser: Any, study_page: Path, grid_page: Path, width: int) -> None:
    for path in (study_page, grid_page):
        opened = browser(path, width=width, height=800)
        assert wide(opened) <= 0, path
        drawn = {name: marks for name, hidden, marks in opened.evaluate(DRAWN) if not hidden}
        assert min(drawn.values()) > 3, drawn


def test_paper_is_light_and_nothing_is_split(browser: Any, study_page: Path, tmp_path: Path) -> None:
    opened = browser(study_page, dark=True)
    opened.page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    opened.page.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.evaluate("document.documentElement.dataset.theme") == "light"
    kept = "[...document.querySelectorAll('main table:not(.kv):not(.long), figure')].map(e => getComputedStyle(e).breakInside)"
    assert set(opened.evaluate(kept)) == {"avoid"}
    assert opened.evaluate("document.querySelector('details.prov').open")
    assert opened.page.locator("#tailcontrols").is_hidden()
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_no_serious_fault(browser: Any, study_page: Path, grid_page: Path, dark: bool, width: int) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core here: scripts/browser.sh installs it")
    for path in (study_page, grid_page):
        opened = browser(path, width=width, dark=dark, bypass_csp=True)
        opened.page.add_script_tag(path=AXE)
        found = opened.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [f for f in found if f["impact"] in ("serious", "critical")]
        assert not serious, json.dumps([(f["id"], [n["target"] for n in f["nodes"]][:5]) for f in serious], indent=1)


def test_names_from_records_stay_text(browser: Any, tmp_path: Path) -> None:
    from tests.page import published
    from vlmbench.report.page import write_page

    source = published.unpack("archive/h200_gemma3_eager/phase1", tmp_path / "source")
    rows = (
        (source / "records.jsonl")
        .read_text()
        .replace('"sample_id": "0000035-0"', '"sample_id": "<img src=x onerror=alert(1)>"')
    )
    provenance = json.loads((source / "provenance.json").read_text())
    provenance["model"]["name"] = '<img src=x onerror="document.title=1"> נמל'
    (source / "records.jsonl").write_text(rows)
    (source / "provenance.json").write_text(json.dumps(provenance))
    opened = browser(write_page(source))
    assert opened.evaluate("document.images.length") == 0
    assert opened.page.title() != "1"
    assert "<img src=x" in opened.page.locator("h1").inner_text()
    assert opened.errors == []


@pytest.mark.slow
def test_100_000_rows_stay_small_and_open(browser: Any, large_page: Path) -> None:
    assert large_page.stat().st_size < 10_000_000
    opened = browser(large_page)
    times = opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    size = large_page.stat().st_size / 1e6
    print(f"100,000 rows: {size:.2f} MB, loaded after {times:.0f} ms")  # noqa: T201 (said, never asserted)
    drawn = {name: marks for name, hidden, marks in opened.evaluate(DRAWN) if not hidden}
    assert {"bar", "strip", "timeline", "dots", "curve", "lane"} <= set(drawn)
    assert max(drawn.values()) < 20_000
    assert "All 50,000 requests are counted" in opened.page.locator("#tailcap").inner_text()
    assert "100,000 rows" in opened.page.locator("#lanecap").inner_text()
    opened.page.get_by_role("button", name="slowest", exact=True).click()
    assert "of 37,500" in opened.page.locator("#picked").inner_text()
    assert opened.errors == []
    assert opened.requests == [large_page.as_uri()]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_line_runs_through_words(browser: Any, study_page: Path, width: int) -> None:
    opened = browser(study_page, width=width)
    for chart in ("roof", "curve"):
        assert opened.page.evaluate(STRUCK, chart) == []


def test_loads_are_told_apart_and_named_beside_their_intervals(browser: Any, tmp_path: Path) -> None:
    """A dash for each load, its name where no interval runs, and panels no higher than their dots need."""
    from tests.page import published
    from vlmbench.report.page import write_page

    path = write_page(published.served(tmp_path / "served"))
    for width in (390, 1280):
        opened = browser(path, width=width)
        for chart in ("curve", "loads"):
            assert opened.page.evaluate(STRUCK, chart) == []
        dashes = opened.evaluate(
            "[...document.querySelectorAll('#curve path[stroke-width]')].map(p => p.getAttribute('stroke-dasharray'))"
        )
        assert len(set(dashes)) == 3, "three loads, each with a line and its key"
        above = opened.evaluate("""[...document.querySelectorAll('#dots text.b')].map(text => {
          const title = text.getBBox(), next = [...document.querySelectorAll('#dots circle, #dots rect')]
            .map(mark => mark.getBBox().y).filter(y => y > title.y);
          return Math.min(...next) - title.y - title.height;
        })""")
        assert len(above) == 3
        assert max(above) < 30, above


def test_on_a_phone_buttons_that_zoom_stay_together(browser: Any, study_page: Path) -> None:
    opened = browser(study_page, width=390)
    tops = opened.evaluate(
        "[...document.querySelectorAll('.zoom')].map(z => [...z.querySelectorAll('button')].map(b => Math.round(b.getBoundingClientRect().top)))"
    )
    assert len(tops) == 2
    assert all(len(set(row)) == 1 and len(row) == 3 for row in tops)


def test_loads_of_a_server_and_an_unfinished_run(browser: Any, tmp_path: Path) -> None:
    from tests.page import published
    from vlmbench.report.page import write_page

    directory = published.served(tmp_path / "served")
    (directory / "outcome.json").write_text('{"state": "interrupted", "runs_done": 69, "runs_total": 200}')
    opened = browser(write_page(directory))
    page = opened.page
    assert "Interrupted after 69 of 200 runs" in page.locator("#unfinished").inner_text()
    assert page.locator("#unfinished").bounding_box()["y"] < 300, "on the first screen"
    page.locator("#loads circle").nth(2).hover()
    assert "first token, median: 400 (394–406) ms" in page.locator(".tip").inner_text()
    marks = page.locator("#loads text").all_inner_texts()
    page.locator("#loadcontrols").get_by_role("button", name="request, median").click()
    assert page.locator("#loads text").all_inner_texts() != marks
    assert "16 users: 200 requests" in page.locator("#dots").inner_text()
    assert opened.errors == []
    narrow = browser(directory / "report.html", width=390, height=800)
    assert wide(narrow) <= 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    ("source", "chart", "names"),
    [
        ("h200_molmo2-8b_eager/phase1", "roof", ["Vision encoder", "Projector", "LLM prefill", "LLM decode"]),
        ("h200_llava_vllm/phase1", "roof", ["Vision encoder", "Projector", "LLM prefill", "LLM decode"]),
        ("h200_llava_endpoint/open", "loads", ["4 arrivals a second", "8 arrivals a second", "12 arrivals a second"]),
    ],
)
def test_a_name_stands_by_its_own_point(
    browser: Any, tmp_path: Path, source: str, chart: str, names: list[str], width: int
) -> None:
    from vlmbench.report.page import write_page

    page = browser(write_page(published.unpack(source, tmp_path / "run")), width=width)
    order = names
    if chart == "roof":  # points of a stage are of its class
        codes = page.evaluate("[...document.querySelectorAll('#roof circle')].map(c => c.classList[0])")
        order = [CODES[code] for code in codes]
    found = page.evaluate(f"({NEAREST})({chart!r})")
    assert sorted(name for name, _ in found) == sorted(names)
    assert [(name, order[at]) for name, at in found if at >= 0 and order[at] != name] == []
    assert sum(at < 0 for _, at in found) <= 1
    assert page.errors == []


def test_a_table_that_goes_on_says_so_and_is_reached_by_key(browser: Any, grid_page: Path) -> None:
    opened = browser(grid_page, width=700, height=800)
    boxes = opened.evaluate(
        "[...document.querySelectorAll('.tablebox')].map(b => [b.scrollWidth > b.clientWidth + 1, b.tabIndex, b.getAttribute('aria-label') || ''])"
    )
    assert any(wider for wider, _, _ in boxes), "no table of this page is wide"
    for wider, tab, label in boxes:
        assert (tab == 0) == wider
        assert ("goes on to the right" in label) == wider
