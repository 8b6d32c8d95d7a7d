"""Processes that measure in turns: each has the machine for a few runs, then passes it to the next.

What two processes measure one after the other cannot be compared where the machine's speed drifts: it keeps a level for
seconds, so hundreds of runs in a row are worth a few tens of independent ones. In turns, what the machine does happens
to all of them.

They share a folder: ``turns.json`` says whose turn it is, changed under a short lock. Each member has a FIFO there, by
which it is woken, and holds a kernel lock on it (``flock``), which falls with the process however that ends.

Who starts several processes knows all that will come, and holds a place for each: a lock on ``NAME.place``, which the
process inherits with its descriptor and keeps for as long as it lives, so that its end is known though it never came to
take part. Files of processes that ended mean nothing, whoever used the folder before.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from uuid import uuid4

from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError
from vlmbench.text import count, note, parse_json, say, shown

_LOOK_S = 0.25  # how often who waits looks whether the holder lives, and whether it is told to stop itself
_LOCK_S = 1.0  # so long the lock is waited for at once: all hold it for milliseconds but one that is stopped with it
_SAID_S, _LACK_SAID_S = 10.0, 3.0  # so long a wait is not told of: for a turn, for members
_ASK_S = 30.0  # how often who lacks members asks what became of those that were started with it
_NAMED = 3  # members, of those that are not ready
_MISSED = "See what became of that process, then run the same command again."
_MISSING = (
    "Start the others, at the same time (jobs of a multirun: hydra/launcher=local hydra.launcher.parallel=2), "
    "or this one for itself with measurement.turns.members=1."
)


def _nobody(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class StartedTogether:
    """What is known of those that were started together with a member, in other ways than by the folder.

    Args:
        coming: names of members that take part, or may still.
        ended: how each other ended that was to take part and did not do all of its work, and where its log is.
        unreadable: what is wrong with each file that was to tell more and cannot be read.
    """

    coming: tuple[str, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()
    unreadable: tuple[str, ...] = ()


def hold_place(directory: Path, of: Path) -> int:
    """Hold the place of a process that is about to be started; returns a descriptor that it must inherit.

    The place is free once all copies of the descriptor are closed. Until then those for whom a place is held, too, wait
    for that process.

    Args:
        directory: what the members share.
        of: the run directory of the process.

    Raises:
        OSError: the folder cannot be used.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / f"{member_name(of)}.place"
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # shared: an earlier life of it may be about to end
    return descriptor


def member_name(of: Path) -> str:
    """The name of a run directory's member: its own, told apart from others of that name."""
    return f"{of.name[:40]}_{sha256(os.fsencode(of.absolute())).hexdigest()[:6]}"


@dataclass(kw_only=True)
class Turns:
    """One process's part in the turns of a machine; a context manager, with whose end it leaves them.

    Args:
        directory: what the members share; None where a process is alone.
        of: the run directory of the member.
        members: the first run waits until so many are there, or all that live for which a place is held.
        runs: of one turn.
        wait_s: longest wait for a turn.
        began_unix_s: when this member was started: who measured after that is of its turns, who died before is not.
        started_with: what became of those that were started with this member; None where nobody knows.

    Attributes:
        waits: told in words what it waits for once that takes a while, and nothing once the turn came.
        waited_s: time spent waiting for turns, s, the wait under way included.
        number: of its present turn, counted over all members together from 1; None before the first.
        returned: whether another member ran since its last turn; whoever has heeded it sets it to False.
    """

    directory: Path | None = None
    of: Path = Path()
    members: int = 2
    runs: int = 8
    wait_s: float = 1800.0
    began_unix_s: float = field(default_factory=time.time)
    started_with: Callable[[], StartedTogether] | None = None
    waits: Callable[[str], None] = field(init=False, default_factory=lambda: _nobody)
    waited_s: float = field(init=False, default=0.0)
    number: int | None = field(init=False, default=None)
    returned: bool = field(init=False, default=False)
    _id: str = field(init=False, default="")
    _left: int = field(init=False, default=0)
    _bell: int = field(init=False, default=-1)
    _gathered: bool = field(init=False, default=False)
    _lacks: bool = field(init=False, default=False)  # fewer live than are waited for
    _told: bool = field(init=False, default=False)
    _most: int | None = field(init=False, default=None)  # that can still come, where some ended
    _ended: str = field(init=False, default="")  # how those did, in words
    _unreadable: set[str] = field(init=False, default_factory=set)  # files, of which was told

    @property
    def name(self) -> str:
        """The member's."""
        return member_name(self.of)

    @property
    def _folder(self) -> Path:
        assert self.directory is not None
        return self.directory

    def __enter__(self) -> Self:
        """Become known to the others, while the model is still to be loaded.

        Raises:
            InputError: the folder cannot be used.
            DirectoryConflictError: another process measures into the same run directory.
        """
        if self.directory is None:
            return self
        try:
            with self._state(make=True) as state:
                self._bell = self._open(self.name, make=True)
                fcntl.flock(self._bell, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = state["members"].setdefault(self.name, {"turns": 0})
                if state["holder"] == self.name:  # an earlier life
                    state["holder"] = None
                ran = [(name, one) for name, one in state["members"].items() if one["turns"]]
                mine |= {"joined": False, "at": time.time(), "gpus": None}
                # Who was started while others measured waits for nobody, but for those of whom is known that they come.
                there = (one is mine or one["at"] >= self.began_unix_s or self._lives(name) for name, one in ran)
                self._id, self._gathered = state["id"], any(there) and not self._comes(self.name)
        except BlockingIOError:
            self._close()
            raise DirectoryConflictError(
                f"'{shown(self.of)}' takes part in the turns of '{shown(self.directory)}' already.\n"
                "Wait for that process or stop it, or choose another directory with output_dir=DIR."
            ) from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bell < 0:
            return
        with suppress(InputError, MeasurementError), self._state(_LOCK_S) as state:  # its own falls with it anyway
            state["members"][self.name] |= {"joined": False, "at": time.time()}
            if state["holder"] == self.name:
                self._grant(state)
        self._close()
        self.number, self._left, self.returned = None, 0, False

    def facts(self) -> dict[str, Any] | None:
        """For the provenance; None where it is alone."""
        if self.directory is None:
            return None
        return {"id": self._id, "member": self.name, "members": self.members, "runs": self.runs}

    def columns(self) -> dict[str, int]:
        """For a row."""
        return {} if self.number is None else {"turn": self.number}

    def uses(self, gpus: Sequence[str]) -> None:
        """Let the others know which GPUs are this member's, by UUID."""
        if self.directory is not None:
            with self._state() as state:
                state["members"][self.name]["gpus"] = list(gpus)

    def others(self, gpu: str | None = None) -> int:
        """How many other members live, loading or measuring; of a GPU those that may use it, where one is given."""
        if self.directory is None:
            return 0
        with self._state() as state:
            found = {name: one.get("gpus") for name, one in state["members"].items() if name != self.name}
            here = [name for name, gpus in found.items() if None in (gpu, gpus) or gpu in gpus]
            return sum(map(self._lives, here))

    def take(self, must_stop: Callable[[], bool]) -> bool:
        """Have the turn for one run more: passed on after ``runs``, and waited for; False when told to stop meanwhile.

        Raises:
            MeasurementError: it was waited for too long.
        """
        if self.directory is None:
            return True
        began, before, told = time.monotonic(), self.waited_s, ""
        asked = began
        while not self._left and (whose := self._whose_if_known()):
            waited = time.monotonic() - began
            self.waited_s = before + waited
            if must_stop():
                return False
            if waited > self.wait_s:
                raise MeasurementError(
                    f"waited {self.wait_s:g} s for a turn (measurement.turns.wait_s): {whose}\n"
                    f"What was measured is kept. {_MISSING if self._lacks else _MISSED}"
                )
            if not self._gathered and time.monotonic() - asked > _ASK_S:
                asked = time.monotonic()
                self._ask_who_comes()
            news = "a turn" if self._gathered else whose  # turns pass by, members come and go
            if waited > (_SAID_S if self._gathered else _LACK_SAID_S) and told != news:
                told = news
                self.waits(f"waits for its turn: {whose}")
                if not (self._gathered and self._told):
                    note(f"waits for its turn: {whose}{f'. {_MISSING}' if self._lacks else ''}")
                self._told = True
            if select.select([self._bell], [], [], _LOOK_S)[0]:
                os.read(self._bell, 4096)
        if told:
            self.waits("")
        self._left -= 1
        return True

    def _whose_if_known(self) -> str:
        """What is waited for, in words, the lock too; empty once the turn is this member's."""
        try:
            return self._whose()
        except _LockedError as error:
            return str(error).splitlines()[0]

    def _whose(self) -> str:
        """What is waited for, in words; empty once the turn is this member's. One that is used up is passed on."""
        with self._state(_LOCK_S) as state:
            members, holder = state["members"], state["holder"]
            members[self.name]["joined"] = True
            held = holder in members and members[holder]["joined"] and self._lives(holder)
            if not self._gathered:
                here = sum(one["joined"] and self._lives(name) for name, one in members.items())
                if here < (needed := self._needed(members)) and not held:
                    ready = f"{here} of {count(needed, 'member')} {'is' if here == 1 else 'are'} ready"
                    return "; ".join([ready, *self._unready(members)])
                if here < self.members:
                    why = [self._ended] if self._ended else self._unready(members)
                    say("; ".join([f"warning: goes on with {here} of {count(self.members, 'member')}", *why]))
            self._gathered, self._lacks = True, False
            if not held or (holder == self.name and state["turn"] == self.number):
                self._grant(state)
            if state["holder"] != self.name:
                return f"{state['holder']} has it"
            self.returned = self.number not in (None, state["turn"] - 1)
            self.number, self._left = state["turn"], self.runs
            return ""

    def _ask_who_comes(self) -> None:
        """Ask what became of those that were started with this member; nobody waits for those that ended."""
        known = StartedTogether() if self.started_with is None else self.started_with()
        for told in known.unreadable:
            if told not in self._unreadable:
                self._unreadable.add(told)
                say(f"warning: {told.rstrip('.')}. Whoever it tells of counts as one that may come.")
        if not known.ended:
            return
        with self._state() as state:
            there = {*self._expected(state["members"]), *known.coming, self.name}
            if len(there) >= self._needed(state["members"]):
                return
        (how, log), more = known.ended[0], len(known.ended) - 1
        self._most, self._ended = len(there), f"{how}{f' (and {more} more)' if more else ''} ({log})"

    def _needed(self, members: dict[str, Any]) -> int:
        """How many are to be ready before the first run."""
        most = self.members if self._most is None else self._most
        if self._comes(self.name):
            return min(most, len(self._expected(members)))
        new = [name for name, one in members.items() if not one["turns"] and one["at"] >= self.began_unix_s]
        return min(most, self.members - sum(not self._lives(name) for name in new))

    def _expected(self, members: dict[str, Any]) -> list[str]:
        """Who takes part or is still to; a process that has left its turns may live on."""
        seen = {name for name, one in members.items() if self._lives(name) or one["at"] >= self.began_unix_s}
        places = [path.stem for path in self._folder.glob("*.place")]
        return [*filter(self._lives, members), *(name for name in places if name not in seen and self._comes(name))]

    def _unready(self, members: dict[str, Any]) -> list[str]:
        """What became of the other members that are not ready, in words: those of which was heard last."""
        expected = self._expected(members)
        self._lacks = len(expected) < self.members and not self._comes(self.name)
        ended = sorted((one["at"], name) for name, one in members.items() if name not in expected)
        words = []
        for _, name in ended:
            turns = members[name]["turns"]
            words.append(f"{name} ended " + (f"after {count(turns, 'turn')}" if turns else "before its first turn"))
        for name in expected:
            if name != self.name and not (self._lives(name) and members[name]["joined"]):
                words.append(f"{name} loads")
        return words[-_NAMED:]

    def _grant(self, state: dict[str, Any]) -> None:
        """Give the turn to the next member that lives and waits, or to its holder again.

        There and back, A B C C B A: in any other order a steady drift would befall one member more than another.
        """
        holder, step = state["holder"], state["step"]
        there = list(state["members"])[::step]
        rest = there[there.index(holder) + 1 :] if holder in there else there
        state["holder"] = None
        for name, way in [*((n, step) for n in rest), *((n, -step) for n in there[::-1]), *((n, step) for n in there)]:
            if not state["members"][name]["joined"]:
                continue
            if not self._lives(name):
                state["members"][name] |= {"joined": False, "at": time.time()}
                say(f"warning: {name} ended without leaving its turns: the others go on")
            else:
                state |= {"holder": name, "step": way, "turn": state["turn"] + 1}
                state["members"][name]["turns"] += 1
                with suppress(OSError):
                    descriptor = self._open(name)
                    os.write(descriptor, b".")
                    os.close(descriptor)
                return

    def _lives(self, name: str) -> bool:
        """Whether a process takes part as a member."""
        return _is_locked(self._folder / f"{name}.fifo")

    def _comes(self, name: str) -> bool:
        """Whether a place is held for a process that lives, or that is to be started."""
        return _is_locked(self._folder / f"{name}.place")

    def _open(self, name: str, *, make: bool = False) -> int:
        path = self._folder / f"{name}.fifo"
        if make:
            with suppress(FileExistsError):
                os.mkfifo(path)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _close(self) -> None:
        descriptor, self._bell = self._bell, -1
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child process may hold a copy
            os.close(descriptor)

    @contextmanager
    def _state(self, within_s: float | None = None, *, make: bool = False) -> Iterator[dict[str, Any]]:
        """``turns.json``, locked; what was changed is written.

        Args:
            within_s: longest wait for the lock; ``wait_s`` if None.
            make: the folder, if it is not there.

        Raises:
            InputError: the folder cannot be used from the start (``make``), or the file is something else.
            MeasurementError: the folder cannot be used any more, or its lock is not to be had.
        """
        path = self._folder / "turns.json"
        try:
            if make:
                self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "turns.lock").open("a") as lock:
                _lock(lock, self.wait_s if within_s is None else within_s)
                before = path.read_bytes() if path.exists() else b""
                state = _read(path, before)
                yield state
                if (after := json.dumps(state).encode()) != before:
                    part = path.with_suffix(".part")
                    part.write_bytes(after)
                    part.replace(path)  # whoever is killed here leaves the old or the new one
        except BlockingIOError:
            raise
        except OSError as error:
            words = f"cannot take turns in '{shown(self._folder)}': {error.strerror or error}."
            if make:
                raise InputError(
                    f"{words}\n"
                    "Name a folder on a disk of this machine with measurement.turns.directory=DIR, or leave it out."
                ) from error
            raise MeasurementError(
                f"{words}\nWhat was measured is kept. Put the folder right, then run the same command again."
            ) from error


class _LockedError(MeasurementError):
    """Another process holds the lock, and goes on holding it."""


def _lock(file: IO[str], within_s: float) -> None:
    """Lock the file; not by waiting in the kernel, where no signal to stop would be heeded.

    Raises:
        _LockedError: another process holds it for so long.
    """
    end = time.monotonic() + within_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > end:
            raise _LockedError(f"a process that stands still has '{shown(Path(file.name))}'\n{_MISSED}")
        time.sleep(0.001)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path, content: bytes) -> dict[str, Any]:
    """The state that a file holds; a fresh one where it holds nothing.

    Raises:
        InputError: it is something else.
    """
    if not content:
        return {"id": str(uuid4()), "turn": 0, "holder": None, "step": 1, "members": {}}
    try:
        found: dict[str, Any] = parse_json(content)
        if [type(found[name]) for name in ("turn", "step", "members")] != [int, int, dict]:
            raise ValueError("no whole numbers and members")
        return {
            **found,
            "members": {name: {"turns": 0, "joined": False, "at": 0, **one} for name, one in found["members"].items()},
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"'{shown(path)}' does not say whose turn it is ({error})\nRemove that folder to begin anew."
        ) from None
