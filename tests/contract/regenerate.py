"""Write the golden files anew: ``python -m tests.contract.regenerate [NAME …] [--runs N]``, from the top of a checkout."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

from tests.contract.runs import COMMANDS, GOLDEN, Made
from tests.contract.trees import merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*COMMANDS, []], help="commands to run; none: all")
    parser.add_argument("--runs", type=int, default=3, help="what not all of so many runs have is marked as optional")
    given = parser.parse_args()
    for name in given.names or COMMANDS:
        made = [_once(name) for _ in range(1 if name == "options" else given.runs)]
        for file in made[0]:
            write(file, [one[file] for one in made])


def write(file: str, runs: list[dict[str, dict[str, str]]]) -> None:
    """One golden file of several runs of one command."""
    names = dict.fromkeys(section for run in runs for section in run)
    sections = {name: merged([run.get(name, {}) for run in runs]) for name in names}
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=10_000)
    (GOLDEN / f"{file}.yaml").write_text(text)


def _once(name: str) -> Made:
    with tempfile.TemporaryDirectory() as folder:
        return COMMANDS[name](Path(folder))


if __name__ == "__main__":
    main()
