"""The contract's lists know every column: of those that are declared, and of those that ``collect`` writes.

Without a run, for ``make quick``; ``tests/test_contract.py`` compares what runs leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.runs import HERE, directory, exceptions, golden
from tests.contract.trees import WANTING, Section, differences, excused, matches
from vlmbench.cluster import collect as collecting
from vlmbench.cluster.collect import collect
from vlmbench.records.outcome import OutcomeFile, State
from vlmbench.records.provenance import begin_session
from vlmbench.records.provenance import collect as provenance
from vlmbench.records.store import RecordStore
from vlmbench.schema import Mode, Record, Status
from vlmbench.schema.columns import COLUMNS, Column

ROWS = "0_smoke/records.jsonl instrumented/ok"
IN_ROWS, IN_TABLE = f"multirun {ROWS}", "collect collected.parquet"
LEFT_OUT = {"schema_version", "ITL"}  # of rows, by collect
ELSEWHERE: Mapping[str, Mapping[str, str]] = yaml.safe_load((HERE / "elsewhere.yaml").read_text())


def listed(name: str, section: Section, where: str) -> bool:
    """Whether a golden section has a column, or ``added.yaml`` names it there."""
    keys = {key.removesuffix(WANTING).removesuffix("[]") for key in section}
    return name in keys or excused(exceptions("added"), where, name)


def complaints(section: Section, now: Section, where: str) -> list[str]:
    """What a golden section and what there is now do not have in common, less what the lists name."""
    missing, fresh, _ = differences(section, now)
    found = [f"{key}: not in added.yaml" for key in fresh if not excused(exceptions("added"), where, key)]
    return found + [f"{key}: not in removed.yaml" for key in missing if not excused(exceptions("removed"), where, key)]


def unknown(columns: tuple[Column, ...]) -> list[str]:
    """Declared columns that are in no list, or in that of rows but not in that of collected tables."""
    rows, table = golden("multirun")[ROWS], golden("collect")["collected.parquet"]
    found = []
    for column in columns:
        for name in column.names() if column.until is None else ():
            elsewhere = any(matches(pattern, name) for pattern in ELSEWHERE.get(column.writer, {}))
            in_rows, in_table = listed(name, rows, IN_ROWS), listed(name, table, IN_TABLE)
            if not in_rows and not elsewhere:
                found.append(f"{name}: neither in added.yaml ({IN_ROWS}) nor in elsewhere.yaml ({column.writer})")
            if in_rows and not elsewhere and name not in LEFT_OUT and not in_table:
                found.append(f"{name}: in rows, but not in added.yaml for '{IN_TABLE}'")
    return found


def test_every_declared_column_is_in_a_list_of_the_contract() -> None:
    assert unknown(COLUMNS) == []
    for writer, patterns in ELSEWHERE.items():
        names = [name for column in COLUMNS if column.writer == writer for name in column.names()]
        idle = [pattern for pattern in patterns if not any(matches(pattern, name) for name in names)]
        assert not idle, f"elsewhere.yaml: {writer} declares no {idle}"
    assert all(reason for patterns in ELSEWHERE.values() for reason in patterns.values())


def test_a_column_that_is_declared_alone_is_found() -> None:
    fresh = Column(name="num_eggs", unit="", meaning="eggs", writer="measurement loop")
    said = f"num_eggs: neither in added.yaml ({IN_ROWS}) nor in elsewhere.yaml (measurement loop)"
    assert unknown((fresh,)) == [said]


def test_a_column_that_is_listed_for_rows_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of_tables = [entry for entry in exceptions("added") if entry["key"] != "processor" or entry["in"] != IN_TABLE]
    monkeypatch.setattr(f"{__name__}.exceptions", lambda kind: of_tables)
    assert unknown(COLUMNS) == [f"processor: in rows, but not in added.yaml for '{IN_TABLE}'"]


def collected(where: Path) -> dict[str, Section]:
    """What is collected of a job whose row holds all columns that rows of the contract hold."""
    rows = golden("multirun")[ROWS]
    names = {name for column in COLUMNS if column.until is None for name in column.names()}
    own = Record(point_id="p", sample_id="s", repeat=0, mode=Mode.INSTRUMENTED, status=Status.OK).to_row()
    values: dict[str, Any] = {
        name: [0.5] if name == "ITL" else "x" if rows.get(name) == "text" else 1.0
        for name in names - own.keys()
        if listed(name, rows, IN_ROWS) and not name.endswith("*")
    }
    folder = where / "grid" / "0_smoke"
    with RecordStore(folder) as store:
        begin_session(folder, provenance({}, model_facts={}, device="cpu", seed=0))
        store.append(
            Record(
                point_id="p", sample_id="s", repeat=0, mode=Mode.INSTRUMENTED, status=Status.OK, values=values,
                flags=("a",), reason="b",
            )
        )  # fmt: skip
    outcome = OutcomeFile(folder)
    outcome.begin()
    outcome.end(State.DONE, exit_status=0, reason="")
    collect(where / "grid", where / "collected", figures=False)
    return directory(where / "collected")


def test_what_collect_writes_is_in_the_lists(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    now = collected(tmp_path)
    for name in ("collected.parquet", "collected.json"):
        assert complaints(golden("collect")[name], now[name], f"collect {name}") == []


def test_a_column_that_collect_alone_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    of_run = collecting._facts
    monkeypatch.setattr(collecting, "_facts", lambda found: of_run(found) | {"eggs": "2"})
    now = collected(tmp_path)["collected.parquet"]
    assert complaints(golden("collect")["collected.parquet"], now, IN_TABLE) == ["eggs: not in added.yaml"]
