"""A real browser without a network; pages of published rows, and of 100,000 made ones."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import row, write
from tests.page import published
from vlmbench.records.files import write_json
from vlmbench.report.page import write_page
from vlmbench.report.phase1_summary import summarise
from vlmbench.schema import Mode

CHROMIUM = "/usr/bin/chromium"
AXE = Path(__file__).parents[2] / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Opened:
    """A page in the browser, with what it asked of the network and what it complained about."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: scripts/browser.sh installs it")
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium here: scripts/browser.sh installs it")
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture
def browser(playwright: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page: ``browser(path, width=…, dark=…)``. Each with a fresh profile, offline."""
    contexts = []

    def opened(path: Path, *, width: int = 1400, height: int = 900, dark: bool = False, **more: Any) -> Opened:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / f"profile{len(contexts)}",
            executable_path=CHROMIUM,
            headless=True,
            args=ARGUMENTS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            offline=True,
            **more,
        )
        contexts.append(context)
        return Opened(context, path)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(published.study(tmp_path_factory.mktemp("browser") / "study"))


@pytest.fixture(scope="session")
def grid_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(published.grid(tmp_path_factory.mktemp("browser") / "grid"))


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 100,000 rows."""
    directory = tmp_path_factory.mktemp("browser") / "large"
    noise = random.Random(0)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(50_000):
            reference = i % 4 == 0
            point, sample = ("reference", "ref") if reference else ("dataset", f"s{i:06d}")
            gaps = [10 * noise.lognormvariate(0, 0.1) for _ in range(7 if reference else 2 + i % 9)]
            flags = ("throttled:power",) if i % 50 == 0 else ()
            for mode in (Mode.INSTRUMENTED, Mode.BARE):
                yield row(
                    point, sample, repeat=i if reference else 0, mode=mode, gaps=gaps, started=1e9 + i,
                    flags=flags, prefill=20 * noise.lognormvariate(0, 0.1),
                )  # fmt: skip

    write_json(directory / "summary.json", summarise(write(directory, rows())))
    return write_page(directory)
