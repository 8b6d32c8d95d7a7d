"""Nothing of a configuration reaches a shell or a scheduler unchecked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlmbench.cluster.grid import check_path
from vlmbench.cluster.settings import LocalSettings, SlurmSettings, parse, safe_line
from vlmbench.errors import ConfigError


@pytest.mark.parametrize(
    "bad",
    [
        {"partition": "a b"}, {"partition": "gpu\n#SBATCH --uid=0"}, {"account": "$(id)"}, {"qos": "a;b"}, {"job_name": "a b"},
        {"comment": "a\nrm -rf /"}, {"gpus": -1}, {"memory_gb": 0}, {"time_min": 0}, {"setup": ["rm -rf /"]},
        {"setup": ["export A=1\nrm x"]}, {"extra": {"wrap": "id"}}, {"extra": {"--nice": 1}}, {"extra": {"nice": "1\n2"}},
        {"partitoin": "gpu"}, {"cpus": "many"}, {"gpus": True},
    ],
)  # fmt: skip
def test_what_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher"):
        parse(SlurmSettings, bad)


def test_what_is_taken() -> None:
    settings = parse(
        SlurmSettings,
        {"partition": "gpu,gpu2", "constraint": "a100&nvlink", "memory_gb": 1.5, "comment": "it's; $(fine)",
         "setup": ["module load cuda/12.4"], "extra": {"mail-type": "END", "exclusive": True}},
    )  # fmt: skip
    assert settings.setup == ("module load cuda/12.4",)
    assert parse(LocalSettings, {"parallel": None, "gpus_per_task": 0}).gpus_per_task == 0


words = st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12), max_size=4)


@given(words)
@example(["$(touch bad)"])
@example(["`touch bad`", '";touch bad;"', "\\", "$", "${x", "!x"])
def test_a_setup_line_runs_one_command_and_nothing_else(extra: list[str]) -> None:
    """What bash makes of the line is what the line says, apart from plain variables."""
    import shlex

    line = " ".join(["export", *map(shlex.quote, extra)])
    try:
        safe = safe_line(line)
    except ValueError:
        return
    script = safe.replace("export", "printf '%s\\0'", 1)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    import re

    expected = [re.sub(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})", "", word) for word in extra]
    if not any(
        "$" in word
        and re.search(
            r"\$\{?(PATH|PWD|SHLVL|_|BASH|OLDPWD|OPT|UID|EUID|PPID|IFS|HOST|LINENO|MACH|OST|PS|RAND|SECO|SHELL|TERM|EPOCH|DIRS|GROUPS|FUNC|COMP|HIST|SRAND|PIPE)",
            word,
        )
        for word in extra
    ):
        assert done.stdout.split("\0")[:-1] == (expected or [""])


def test_variables_expand_in_setup_lines() -> None:
    line = safe_line('export HF_HOME="$SCRATCH/hf dir" A=${B}')
    done = subprocess.run(
        ["bash", "-c", f"{line}; printf '%s|' \"$HF_HOME\" \"$A\""], capture_output=True, text=True, check=True,
        env={"SCRATCH": "/s x", "B": "b"},
    )  # fmt: skip
    assert done.stdout == "/s x/hf dir|b|"


@pytest.mark.parametrize("bad", ["a%j", "a\nb", "a\\b", "a\tb"])
def test_directories_that_a_scheduler_would_misread(bad: str) -> None:
    with pytest.raises(ConfigError, match="output_dir=DIR"):
        check_path(Path(bad))


@pytest.mark.parametrize("good", ["a b", "a'b\"c", "$(x);`y`", "ü"])
def test_directories_that_are_only_odd(good: str) -> None:
    check_path(Path(good))
