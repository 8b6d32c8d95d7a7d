"""Shared fixtures: composing configurations, and running the real command line in a process of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from omegaconf import DictConfig

from tests import forks
from tests.browser import browser, chromium  # noqa: F401
from tests.command_line import command_line
from vlmbench.cli import config
from vlmbench.machine.installation import conf_dir

# Before torch is imported: two tests run at a time, and with a thread a core each they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine makes one example of a property slow; that says nothing of the property.
settings.register_profile("vlmbench", deadline=None)
settings.load_profile("vlmbench")

# `make quick`: rooms whose tests need neither a model nor a process, without the few that take longer than seconds.
QUICK = (
    "analysis", "data", "probes", "records", "test_architecture.py", "test_arguments.py", "test_contract_columns.py",
    "test_schema.py", "test_security_policy.py", "test_stopping.py", "test_sweep.py",
)  # fmt: skip
LONG = frozenset(
    (
        "test_phase_1_shows_it_everywhere", "test_clustered_intervals_cover_where_independent_ones_fail",
        "test_table_headline_and_page_show_both", "test_a_slope_that_first_runs_hide_is_shown",
        "test_a_sweep_has_it_point_by_point", "test_a_straight_line_is_seldom_called_bent",
        "test_nothing_grows_with_the_number_of_samples", "test_a_real_trace_of_the_planted_model",
        "test_every_key_of_a_run_is_a_known_column", "test_two_hundred_and_fifty_kills_lose_nothing_and_double_nothing",
        "test_every_byte_offset_is_repaired", "test_any_tail_is_repaired",
        "test_memory_of_the_store_is_at_most_100_bytes_a_row", "test_importing_takes_no_torch",
        "test_strict_is_always_storable_and_idempotent", "test_the_compact_index_holds_what_the_files_say",
        "test_same_items_as_json_however_the_bytes_are_cut", "test_intervals_of_the_ratio_hold_the_truth",
        "test_bytes_are_the_same_in_another_process", "test_memory_grows_little_with_rows", "test_intervals_hold_the_true_slope",
        "test_the_order_of_rows_matters_to_the_interval_alone", "test_share_interval_covers_the_planted_share",
        "test_redaction_takes_time_in_proportion_to_the_text", "test_without_network_the_message_says_what_to_do",
        "test_as_many_runs_as_are_said_to_do_do", "test_points_on_a_curve_are_seldom_said_to_be_off_it",
    )
)  # fmt: skip
FREEZE, UNFREEZE = gc.freeze, gc.unfreeze
_ELSEWHERE = ("slow", "gpu", "network", "slurm", "server", "browser")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the files of other rooms unread where only the quick tests run: importing them takes longer than these."""
    tests = Path(__file__).parent
    if config.option.markexpr != "quick" or not collection_path.is_relative_to(tests) or collection_path == tests:
        return None
    return True if collection_path.relative_to(tests).parts[0] not in QUICK else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` runs."""
    tests = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        long = getattr(item, "originalname", item.name) in LONG
        if place in QUICK and not long and not any(item.get_closest_marker(name) for name in _ELSEWHERE):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session", autouse=True)
def set_aside() -> Iterator[None]:
    """No search for garbage in the million objects that tests share; each measured run begins with such a search.

    They are frozen once, so nothing else may freeze, or unfreeze, meanwhile.
    """
    gc.collect()
    FREEZE()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "freeze", lambda: None)
        patch.setattr(gc, "unfreeze", lambda: None)
        yield


@pytest.fixture
def freezing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is frozen, and the garbage collector freezes and unfreezes."""
    monkeypatch.setattr(gc, "freeze", FREEZE)
    monkeypatch.setattr(gc, "unfreeze", UNFREEZE)
    UNFREEZE()
    yield
    gc.collect()
    FREEZE()


@pytest.fixture
def compose() -> Iterator[Callable[..., DictConfig]]:
    """Compose the shipped configuration with overrides."""
    config.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda *overrides: hydra.compose("config", overrides=list(overrides))


@pytest.fixture
def vlmbench_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``vlmbench``, in this process: for all where a process of its own is not the point, many times as fast."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        for name in [name for name in os.environ if name.startswith(forks.NOT_HANDED_ON)]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)
        done = command_line(*arguments)
        return subprocess.CompletedProcess(arguments, done.status, done.out, done.said)

    return run


@pytest.fixture
def vlmbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m vlmbench`` in an empty working directory. A run that hangs ends with its test's time."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vlmbench", *arguments],
            cwd=tmp_path,
            env=forks.clean_environment(**environment),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def vlmbench_forked(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``vlmbench``, where its imports are not the point: the process begins with all of them made."""
    return partial(forks.run, cwd=tmp_path)
