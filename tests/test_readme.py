"""What README and docs tell people to type is what the program takes, and what README says was found was found."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import vlmbench as package
from vlmbench.cli import validate
from vlmbench.cli.argument_order import arranged
from vlmbench.machine.installation import conf_dir

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
)
EXAMPLES = ("docs/plugin_example/", "docs/intervention_example/")  # need their package: tests/test_plugins.py runs them
TRANSLATED = sorted(page.name for page in (ROOT / "docs" / "zh").glob("*.md"))
Run = Callable[..., subprocess.CompletedProcess[str]]


def lines(page: str) -> list[list[str]]:
    """The words of every command line in the bash blocks of a page."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in text if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def commands(page: str) -> list[list[str]]:
    """Argument lists of every ``python -m vlmbench …`` in the bash blocks of a page."""
    return [words[3:] for words in lines(page) if words[:3] == ["python", "-m", "vlmbench"]]


ALL = [(page, words) for page in PAGES if not page.startswith(EXAMPLES) for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_each_command_composes(compose: Callable[..., DictConfig], page: str, words: list[str]) -> None:
    if "--help" in words or "--hydra-help" in words:
        return
    overrides = []
    for word in words:
        of_hydra = word.startswith(("hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper"))
        if word.startswith("-") or of_hydra or "=" not in word or "=choice(" in word:
            continue
        key, value = word.split("=", 1)
        if "-m" in words and "/" not in key and "," in value and not value.startswith(("[", "'", '"', "{")):
            value = value.split(",")[0]  # one job of a multirun
        overrides.append(f"{key}={value}")
    validate.validate(compose(*arranged(overrides)))


def test_there_are_commands_to_check() -> None:
    assert len(ALL) > 40


@pytest.mark.parametrize("page", PAGES)
def test_every_other_command_names_what_there_is(page: str) -> None:
    """Scripts, make targets, extras and test files exist; a command of no known kind is an error."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for given in lines(page):
        words = given[next(i for i, word in enumerate(given) if not re.fullmatch(r"[A-Z_]+=.*", word)) :]
        match words:
            case ["make", *wanted]:
                assert {word for word in wanted if "=" not in word} <= set(targets), given
            case ["pip", "install", *wanted]:
                named = re.findall(r"(?:^\.|vlmbench-latency)\[([^\]]*)\]", " ".join(w for w in wanted if w != "-e"))
                assert {extra for one in named for extra in one.split(",")} <= set(extras), given
            case ["python", "-m", module, *rest]:
                assert importlib.util.find_spec(module) is not None, given
                assert all((ROOT / path).exists() for path in rest if path.startswith("tests/")), given
            case ["python" | "torchrun" | "bash", *rest]:
                assert all((ROOT / path).exists() for path in rest if path.startswith(("scripts/", "benchmarks/"))), (
                    given
                )
            case [command, *_] if command.startswith("scripts/"):
                assert (ROOT / command).exists(), given
            case ["vlmbench" | "lint-imports" | "hf" | "srun" | "source" | "eval" | "cd" | "git", *_]:
                pass
            case _:
                pytest.fail(f"{page}: a command of no known kind: {' '.join(given)}")


def tour() -> list[list[str]]:
    """The commands of README's tour."""
    text = (ROOT / "README.md").read_text()
    inside = text[text.index("## Five-minute tour") : text.index("\n## ", text.index("## Five-minute tour") + 1)]
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", inside, flags=re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[3:] for line in blocks.splitlines() if line.startswith("python -m")]


@pytest.mark.slow
@pytest.mark.parametrize("words", tour(), ids=lambda words: words[0])
def test_the_tour_runs(vlmbench_forked: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    shorter = ["dataset.num_samples=2", "output.tokens=2"] if words[0] == "experiment=phase1" else []
    done = vlmbench_forked(*words, *shorter)
    assert done.returncode == 0, done.stderr
    for out in [word.partition("=")[2] for word in words if word.startswith("output_dir=")]:
        assert (tmp_path / out / "report.html").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'<img [^>]*?src="([^"]+)"', text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert ((ROOT / page).parent / target).exists(), target


def test_figures_have_two_pixels_for_one_of_the_page() -> None:
    """So that they are sharp on a dense screen and in print, at the size that they were drawn for."""
    shown = [
        ((ROOT / page).parent / source, int(width))
        for page in PAGES
        for source, width in re.findall(
            r'<img src="([^"]+\.png)" alt="[^"]+" width="(\d+)">', (ROOT / page).read_text()
        )
    ]
    assert len(shown) > 30
    for file, width in shown:
        with Image.open(file) as image:
            assert (image.width, image.mode) == (2 * width, "P"), file
    assert not [page for page in PAGES if re.search(r"!\[[^]]*\]\([^)]+\.png\)", (ROOT / page).read_text())]


def test_the_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z][a-z0-9-]*)`?", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_number_of_models_is_true() -> None:
    shipped = {p.stem for p in (conf_dir() / "model").glob("*.yaml")} - {"tiny"}
    patterns = {
        "README.md": r"Any of (\d+) models",
        "docs/usage.md": r"(\d+) models ship",
        "docs/zh/usage.md": r"(\d+) 个模型",
    }
    for page, pattern in patterns.items():
        said = re.search(pattern, (ROOT / page).read_text())
        assert said is not None, page
        assert int(said.group(1)) == len(shipped), page


def test_what_the_pages_say_was_found_is_what_the_rows_say() -> None:
    """README, findings, study and results are what ``scripts/findings.py`` makes of the published results."""
    done = subprocess.run(
        [sys.executable, "scripts/findings.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_the_citation_is_valid_and_of_this_version() -> None:
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == package.__version__
    assert cited["license"] == "Apache-2.0"
    assert cited["authors"]
    if importlib.util.find_spec("cffconvert") is not None:
        subprocess.run([sys.executable, "-m", "cffconvert", "--validate"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text()])
def test_python_that_is_shown_can_be_read(page: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        compile(block, page, "exec")


def test_the_yaml_that_is_shown_is_taken() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "usage.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert validate.check_component(OmegaConf.create(yaml.safe_load(block))) == []


def outline(page: str) -> list[int]:
    """The levels of a page's headings."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]


def code(page: str) -> list[str]:
    """A page's code without what is written for people: comments, and the spaces before them."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [
        re.sub(r"\s*#.*", "", line) for block in blocks for line in block.splitlines() if re.sub(r"\s*#.*", "", line)
    ]


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_pages_are_in_step(name: str) -> None:
    """The same headings, code, tables and keys of the configuration as the English page."""
    english, chinese = f"docs/{name}", f"docs/zh/{name}"
    assert outline(chinese) == outline(english)
    assert code(chinese) == code(english)
    texts = [re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL) for page in (english, chinese)]
    assert texts[1].count("\n|") == texts[0].count("\n|")  # rows of tables
    keys = [set(re.findall(r"`([^`]+)`", " ".join(text.split()))) for text in texts]
    assert keys[0] == keys[1], keys[0] ^ keys[1]


def test_two_pages_are_in_chinese() -> None:
    assert TRANSLATED == ["experiment_plan.md", "usage.md"]
