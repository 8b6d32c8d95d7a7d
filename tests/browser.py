"""A real browser without a network: the only place of the tests that starts one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[1] / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
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

    def __init__(self, context: Any, path: Path | None) -> None:
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        if path is not None:
            self.page.goto(path.as_uri())
            self.page.wait_for_selector("html[data-ready]", state="attached")

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the tests of a module, ended before another module's begin.

    While Playwright is open, its event loop runs in this thread: neither a second Playwright nor anything else that
    calls ``asyncio.run`` (the tests of endpoints) works beside it. So it may not outlive its module, and is started here
    alone.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: scripts/browser.sh installs it")
    if (executable := shutil.which("chromium")) is None:
        pytest.skip("no Chromium here: scripts/browser.sh installs it")
    with sync_api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=executable, headless=True, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """Opens a page of a report: ``browser(path, width=…, dark=…)``, or an empty one. Each with a fresh profile."""
    contexts = []

    def opened(path: Path | None = None, *, width: int = 1400, height: int = 900, **more: Any) -> Opened:
        given = {"offline": True, "color_scheme": "dark" if more.pop("dark", False) else "light"} | more
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **given))
        return Opened(contexts[-1], path)

    yield opened
    for context in contexts:
        context.close()
