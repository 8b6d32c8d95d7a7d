"""Write hashes.txt: what ``make setup`` installs, one package a line, with the hash of every file that may be taken.

    python scripts/hashes.py        # after a change of constraints.txt or pyproject.toml

uv resolves ``.[all]`` with constraints.txt for Linux and macOS and Python 3.11 and 3.12, and asks the index for the
hashes of the files. Of each package those that these can install are kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "hashes.txt"
BUILD = "setuptools\neditables~=0.3\n"  # what installing an sdist and an editable checkout takes
# The CPU builds of torch are on an index of their own (download.pytorch.org/whl/cpu), so uv does not see them:
# cp311 x86_64, cp311 aarch64, cp312 x86_64, cp312 aarch64.
CPU_TORCH = (
    "2.13.0+cpu",
    "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
)
HEAD = """\
# Made by scripts/hashes.py from constraints.txt: what make setup takes, and the hashes of the files that it may take.
# torch+cpu: the CPU builds of torch's own index. CUDA: installed only beside a build of torch for GPUs.
"""
CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton$")
_PYTHON = re.compile(r"-(cp31[12]-cp31[12]|cp3\d?1?[012]?-abi3|(?:py\d\.)?py3\d*-none|py2\.py3-none)-([^-]+)\.whl$")
_PLATFORM = re.compile(r"any|manylinux.*_(x86_64|aarch64)|linux_(x86_64|aarch64)|macosx_.*(arm64|x86_64|universal2)")


def fits(wheel: str) -> bool:
    """Whether Python 3.11 or 3.12 on Linux or macOS can install it."""
    found = _PYTHON.search(wheel)
    return found is not None and _PLATFORM.match(found[2]) is not None


def line(package: dict[str, Any]) -> str | None:
    """One package of the resolution; None if it is for other systems."""
    marker = package.get("marker", "")
    if ("win32" in marker and "!=" not in marker) or ("emscripten" in marker and "!=" not in marker):
        return None
    wheels = [one for one in package.get("wheels", ()) if fits(one["url"].rsplit("/", 1)[-1])]
    files = [*wheels, *([package["sdist"]] if "sdist" in package else [])]
    hashes = " ".join(f"--hash=sha256:{one['hashes']['sha256']}" for one in files)
    note = "  # CUDA" if CUDA.match(package["name"]) else ""
    return f"{package['name']}=={package['version']}{f' ; {marker}' if marker else ''} {hashes}{note}"


def main() -> int:
    """Resolve and write; returns the exit status."""
    command = [
        "uv", "pip", "compile", "pyproject.toml", "-", "--universal", "--python-version", "3.11.5", "--extra", "all",
        "--constraints", "constraints.txt", "--format", "pylock.toml", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, input=BUILD, text=True, stdout=subprocess.PIPE, check=True)
    packages = tomllib.loads(done.stdout)["packages"]
    lines = [made for package in packages if (made := line(package)) is not None]
    version, *hashes = CPU_TORCH
    if f"torch=={version.removesuffix('+cpu')} " not in "\n".join(lines):
        print(f"CPU_TORCH in {__file__} is of {version}: give the hashes of the version in constraints.txt")
        return 1
    lines.append(f"torch=={version} " + " ".join(f"--hash=sha256:{one}" for one in hashes))
    OUT.write_text(HEAD + "".join(f"{one}\n" for one in sorted(lines)))
    print(f"{OUT.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
