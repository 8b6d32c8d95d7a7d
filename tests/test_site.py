"""The site of docs/: built strictly, crawled for dead links and anchors, read from disk without a request."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
# What a browser fetches by itself, without a click.
FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
NOT_FETCHED = {"canonical", "next", "prev", "alternate"}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="not installed: mkdocs-material (make setup brings it)"
)


class Page(HTMLParser):
    """The links, anchors and fetched addresses of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in NOT_FETCHED:
            self.fetched.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    env |= {"https_proxy": "http://127.0.0.1:9"}  # it builds without a network
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(place)],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def local(page: Path, link: str) -> tuple[Path, str] | None:
    """The file and anchor of a link within the site; None for another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def test_no_link_or_anchor_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for page, content in pages.items():
        for link in [*content.links, *content.fetched]:
            if (target := local(page, link)) is None:
                continue
            path, anchor = target
            if not path.is_file() or (anchor and path in pages and anchor not in pages[path].anchors):
                dead.append(f"{page.relative_to(site)}: {link}")
    assert not dead


def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    linked = {target[0] for link in pages[site / "index.html"].links if (target := local(site / "index.html", link))}
    assert {str(p.relative_to(site)) for p in set(pages) - linked} == set()


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Neither by a page, nor by a style sheet."""
    assert not [f"{page}: {url}" for page, content in pages.items() for url in content.fetched if urlsplit(url).netloc]
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//[^)'\"]+", styles)


def test_no_line_can_end_between_a_number_and_its_unit(site: Path) -> None:
    """In the texts of the site; code is copied, and anchors are made of headings."""
    for name in ("index.html", "findings.html"):
        page = re.sub(r"(?s)<(code|pre|script|h\d)\b.*?</\1>", "", (site / name).read_text(encoding="utf-8"))
        assert "\N{NO-BREAK SPACE}%" in page
        assert re.findall(r".{12}\d (?:%|ms)(?![\w-])", page) == []


def test_the_api_page_has_every_public_name(pages: dict[Path, Page], site: Path) -> None:
    import vlmbench

    anchors = pages[site / "api.html"].anchors
    assert not [name for name in vlmbench.__all__ if not any(anchor.endswith(f".{name}") for anchor in anchors)]
    assert not re.findall(r":[a-z]+:<code>", (site / "api.html").read_text(encoding="utf-8"))


@pytest.mark.browser
def test_from_disk_it_asks_nothing_of_a_network_and_can_be_searched(site: Path, browser: Any) -> None:
    opened = browser(width=390, height=800, offline=False)  # its search does not answer a browser that says "offline"
    page = opened.page
    for name in ("index.html", "api.html", "records.html", "zh/usage.html", "results/index.html"):
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
    page.goto((site / "index.html").as_uri())
    shown = page.evaluate(
        "[...document.querySelectorAll('.md-content p > img')].map(i => [i.getBoundingClientRect().width, i.parentElement.clientWidth])"
    )
    assert shown
    assert all(width == 560 and room < 390 for width, room in shown), "a figure keeps a width at which it can be read"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    links = page.locator("a.md-search-result__link")
    for look in range(480):
        if look % 20 == 0:  # with keys, for it listens to these; what comes before it listens is to be typed again
            page.fill("input.md-search__input", "")
            page.type("input.md-search__input", "jackknife")
        page.wait_for_timeout(250)
        if links.count():
            break
    found = page.eval_on_selector_all("a.md-search-result__link", "links => links.map(link => link.href)")
    assert any("experiment_plan.html" in link for link in found)
    assert not [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert opened.errors == []
