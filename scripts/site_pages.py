"""What mkdocs is told beyond docs/: pages that lie elsewhere, links that leave the site, the API page."""

from __future__ import annotations

import os
import re
import sys
from html import unescape
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
ROOT = Path(__file__).resolve().parents[1]
# Files of the checkout that are pages of the site, too; their links are followed from where they lie.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^)\s]+)\)")
_IMAGE = re.compile(r'<img src="(?P<target>[^"]+)" alt="(?P<words>[^"]*)" width="(?P<width>\d+)">')
_ROLE = re.compile(r":(?:py:)?[a-z]+:(?=<code>)")
_UNIT = re.compile(r"(?<=\d) (?=(?:%|×|[mµ]?s|G[iB]+|TB/s)(?!\w))")
_FENCE = re.compile(r"^(```|~~~)", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Point links and pictures to files of the site, leave only the words of links that lead elsewhere in the checkout,
    and hold numbers to their units (not in headings: their anchors are made of them).
    """
    name = page.file.src_uri
    source = next((source for source, target in ELSEWHERE.items() if target == name), f"docs/{name}")
    text = "".join(
        part if fenced else _held(_LINK.sub(lambda m: _link(m, source, name, files), _IMAGE.sub(_picture, part)))
        for fenced, part in _parts(markdown)
    )
    return text + _references() if name == "api.md" else text


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Take Sphinx's roles (``:func:`` before a name) out of what docstrings said."""
    return _ROLE.sub("", html) if page.file.src_uri == "api.md" else html


def _parts(markdown: str) -> list[tuple[bool, str]]:
    """The page cut at its fences: (whether it is code, text)."""
    parts: list[tuple[bool, str]] = []
    fenced = False
    for line in markdown.splitlines(keepends=True):
        fence = bool(_FENCE.match(line.lstrip()))
        parts.append((fenced or fence, line))
        fenced ^= fence
    return parts


def _held(text: str) -> str:
    """A line without a break between a number and its unit; what stands between backticks is copied, so it stays."""
    if text.startswith("#"):
        return text
    return "`".join(
        _UNIT.sub("\N{NO-BREAK SPACE}", part) if i % 2 == 0 else part for i, part in enumerate(text.split("`"))
    )


def _picture(match: re.Match[str]) -> str:
    """A picture with a width, as HTML, in Markdown: its path is followed, and mkdocs says so where it is dead."""
    return f"![{unescape(match['words'])}]({match['target']}){{: width={match['width']} }}"


def _link(match: re.Match[str], source: str, page: str, files: Files) -> str:
    target, hash_, anchor = match["target"].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return match[0]
    path = os.path.normpath(PurePosixPath(source).parent / target)
    words = _LINK.sub(lambda m: _link(m, source, page, files), match["text"])  # a picture that is a link
    for candidate in (path, f"{path}/README.md"):
        there = ELSEWHERE.get(candidate) or candidate.removeprefix("docs/")
        file = files.get_file_from_path(there) if candidate in ELSEWHERE or candidate.startswith("docs/") else None
        if file and file.inclusion.is_included():
            return f"{match['image']}[{words}]({os.path.relpath(there, PurePosixPath(page).parent)}{hash_}{anchor})"
    if (ROOT / path).exists() and not match["image"]:
        return words
    return match[0]  # a dead link: mkdocs says so


def _references() -> str:
    """The public names, each with what its docstring says."""
    import vlmbench
    from vlmbench.api import PLACES

    return "\n" + "\n\n".join(f"::: vlmbench.api.{PLACES[name]}.{name}" for name in vlmbench.__all__) + "\n"
