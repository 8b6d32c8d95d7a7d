"""One run directory, from its lock to its end: open, begin, note, end.

::

    with RunDirectory(directory, config) as run:       # locked; another configuration or process is refused here
        run.check_alike(what_is_known_of_the_device)   # before a model is loaded
        with run.rows() as store:                      # rows of earlier sessions are indexed, a torn end is cut off
            run.begin(provenance, points_total=12)     # provenance.json, outcome.json, .hydra/
            …                                          # run.note(points_done=…) now and then
        run.end(points, device="cuda:0")               # points.json, the end of the session

What lies in it::

    .run.lock        who is at work        begun.json         the run under way, deaths in mid-run (else absent)
    records.jsonl    one row a run         points.json        how each point ended
    provenance.json  where it comes from   outcome.json       how far the run is
    .hydra/          the configuration as the command line composed it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmbench.errors import InputError
from vlmbench.records import provenance
from vlmbench.records.attempts import Attempts
from vlmbench.records.files import NO_LINK, remove_stray_parts, write_json
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import OutcomeFile
from vlmbench.records.reading import RECORDS_NAME, check_schema, parse_row
from vlmbench.records.redact import shareable
from vlmbench.records.store import RecordStore

POINTS_NAME = "points.json"
FOLDERS = (".hydra", "figures", "tables")
"""Folders of a run directory that a run, or its report, writes into."""


def overrides_of(directory: Path) -> list[str] | None:
    """The choices that a run was made with, by Hydra's own list; None where it does not say."""
    import yaml

    try:
        listed = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return [str(one) for one in listed] if isinstance(listed, list) else None


class RunDirectory:
    """The exclusive right to one run directory, and all that is written there beside reports.

    Args:
        path: the run directory; made when missing.
        config: the resolved configuration, plain.
        outcome: keeps ``outcome.json``; one of its own if None.
        write_composed: writes ``.hydra/``; called once the directory is known to be this run's.
        break_lock: see :class:`vlmbench.records.lock.RunLock`.
        allow_unlike: whether sessions of unlike hardware, dtype or runtime may be mixed.

    Attributes:
        known: whether an earlier session of this configuration was here.
        attempts: names the run under way on disk.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        outcome: OutcomeFile | None = None,
        write_composed: Callable[[], None] | None = None,
        break_lock: bool = False,
        allow_unlike: bool = False,
    ) -> None:
        self.path = Path(path)
        self.outcome = outcome or OutcomeFile(self.path)
        self.known = False
        self.attempts = Attempts(self.path)
        self._config = config
        self._write_composed = write_composed
        self._allow_unlike = allow_unlike
        self._provenance: Mapping[str, Any] = {}
        self._lock = RunLock(self.path, break_lock=break_lock)

    def __enter__(self) -> Self:
        """Lock the directory and look at what is there; nothing of an earlier session is changed.

        Raises:
            DirectoryConflictError: another process holds it, or it belongs to another configuration.
            InputError: it cannot be read or written, or its rows are of another schema.
        """
        self._lock.__enter__()
        try:
            self.known = provenance.check_directory(self.path, self._config)
            self._check_schema()
            self._check_folders()
            remove_stray_parts(self.path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.attempts.close()
        self._lock.__exit__(kind, error, tb)

    def check_alike(self, session: Mapping[str, Any]) -> None:
        """Refuse to continue what unlike hardware or another runtime began, unless ``allow_unlike`` is set.

        Args:
            session: ``device`` and ``model`` of a session, as far as known already.

        Raises:
            DirectoryConflictError: the message says what differs.
        """
        provenance.check_alike(self.path, session, allow_unlike=self._allow_unlike)

    @contextmanager
    def rows(self) -> Iterator[RecordStore]:
        """The store of rows, open and indexed, with the runs that were begun.

        Raises:
            InputError: it cannot be read or written.
            RowsLostError: at its end, the file is no longer in its place.
        """
        with RecordStore(self.path) as store:
            self.attempts.open(store.has_run_of)
            yield store

    def begin(self, session: Mapping[str, Any], *, points_total: int) -> list[str]:
        """Write the configuration, the provenance with this session, and the outcome that says it runs.

        Args:
            session: from :func:`vlmbench.records.provenance.collect`.

        Returns:
            What is unlike the sessions before, in words.

        Raises:
            DirectoryConflictError: see :meth:`check_alike`.
        """
        if self._write_composed is not None:
            self._write_composed()
        self._provenance, warnings = provenance.begin_session(self.path, session, allow_unlike=self._allow_unlike)
        self.outcome.begin(points_total=points_total)
        return warnings

    def note(self, *, points_done: int, rows: int, runs: tuple[int, int] | None = None) -> None:
        """Note how far the run is, with runs that are over and that are expected; on disk every ten seconds at most."""
        self.outcome.progress(points_done=points_done, rows=rows, runs=runs)

    def end(self, points: Sequence[Mapping[str, Any]], *, device: str, extra: Mapping[str, Any] | None = None) -> None:
        """Write down how each point ended, and the end of the session with the state of its device.

        Args:
            device: ``cpu``, ``cuda:0`` ….
            extra: facts that are known at the end only.
        """
        write_json(self.path / POINTS_NAME, {"points": shareable(list(points))})
        provenance.end_session(self.path, self._provenance, device=device, extra=extra)

    def _check_folders(self) -> None:
        """Refuse links in the place of folders that files are written into."""
        for name in FOLDERS:
            if (self.path / name).is_symlink():
                raise InputError(f"'{self.path / name}' {NO_LINK}")

    def _check_schema(self) -> None:
        """Refuse rows of another schema before a model is loaded; the first row stands for all until they are read."""
        file = self.path / RECORDS_NAME
        if not file.is_file():
            return
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if (row := parse_row(line)) is not None:
                    check_schema(row, file, number)
                    return
