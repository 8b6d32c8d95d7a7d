"""What the README tells people to type is what the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from vlmbench.cli import validate
from vlmbench.cli.argument_order import arranged
from vlmbench.machine.installation import conf_dir

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


def commands(page: str) -> list[list[str]]:
    """Argument lists of every ``python -m vlmbench …`` in the bash blocks of a page."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*\$?\s*python -m vlmbench( |$)", line)]
    return [words[words.index("vlmbench") + 1 :] for words in found]


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_each_command_composes(compose: Callable[..., DictConfig], page: str, words: list[str]) -> None:
    if "--help" in words or "--hydra-help" in words:
        return
    overrides = []
    for word in words:
        if word.startswith("-") or word.startswith(("hydra.launcher", "hydra/launcher")) or "=" not in word:
            continue
        key, value = word.split("=", 1)
        if "-m" in words and "/" not in key and "," in value and not value.startswith(("[", "'", '"', "{")):
            value = value.split(",")[0]  # one job of a multirun
        overrides.append(f"{key}={value}")
    validate.validate(compose(*arranged(overrides)))


def test_there_are_commands_to_check() -> None:
    assert len(ALL) > 10


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z][a-z0-9-]*)`?", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_number_of_models_is_true() -> None:
    said = re.search(r"(\d+) models ship", (ROOT / "README.md").read_text())
    assert said is not None
    shipped = {p.stem for p in (conf_dir() / "model").glob("*.yaml")} - {"tiny"}
    assert int(said.group(1)) == len(shipped)
