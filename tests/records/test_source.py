"""Code that a checkout does not hold has no commit of that checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vlmbench.machine.installation import git_state


def test_an_export_inside_another_checkout_has_no_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    for folder in ("package", "export/package"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    git("init")
    git("add", "package")
    git("commit", "-m", "first")
    held = git_state(tmp_path / "package")
    assert held is not None
    assert held["dirty"] is False
    assert git_state(tmp_path / "export/package") is None
