"""Code of others runs only where the user said so: filters of a checkout, modules that a model's YAML names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlmbench.errors import ModelError
from vlmbench.machine.installation import git_state
from vlmbench.models.loading import import_plugin
from vlmbench.models.spec import ModelSpec


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["clean", "process"])
def test_looking_at_a_checkout_runs_none_of_its_filters(tmp_path: Path, kind: str) -> None:
    folder, trace = tmp_path / "checkout", tmp_path / "filter_ran"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.txt").write_text("one\n")
    (folder / ".gitattributes").write_text("*.txt filter=evil\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    git(folder, "config", f"filter.evil.{kind}", f"touch '{trace}'; cat")
    git(folder, "config", "filter.evil.required", "true")
    (folder / "a.txt").write_text("two\n")
    state = git_state(folder)
    assert state is not None
    assert state["dirty"] is True
    assert state["diff_sha256"] is not None
    assert not trace.exists()


def test_a_plugin_from_elsewhere_is_imported_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere_plugin.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"model_type": "llava"}
    with pytest.raises(ModelError, match=r"'elsewhere_plugin'.*trust_remote_code=true"):
        import_plugin(ModelSpec(name="x", config=config, plugin="elsewhere_plugin"))
    assert "elsewhere_plugin" not in sys.modules
    with pytest.raises(SystemExit, match="it ran"):
        import_plugin(ModelSpec(name="x", config=config, plugin="elsewhere_plugin", trust_remote_code=True))
    import_plugin(ModelSpec(name="x", config=config))
