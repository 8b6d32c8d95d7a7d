"""Processes that measure in turns: each has the machine for a few runs, then passes it to the next.

What two processes measure one after the other cannot be compared where the machine's speed drifts: it keeps a level for
seconds, so hundreds of runs in a row are worth a few tens of independent ones. In turns, what the machine does happens
to all of them.

They share a folder: ``turns.json`` says whose turn it is, changed under a short lock. Each member has a FIFO there, by
which it is woken, and holds a kernel lock on it (``flock``), which falls with the process however that ends. A file
``NAME.gone`` says of a process that it ended before it was a member: nobody waits for it.
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
from typing import Any, Self
from uuid import uuid4

from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError
from vlmbench.text import count, note, parse_json, shown

_LOOK_S = 0.25  # how often who waits looks whether the holder lives, and whether it is told to stop itself
_SAID_S, _LACK_SAID_S = 10.0, 3.0  # so long a wait is not told of: for a turn, for members
_NAMED = 3  # members, of those that are not ready
_MISSED = "See what became of that process, then run the same command again."
_MISSING = (
    "Start the others, at the same time (jobs of a multirun: hydra/launcher=local hydra.launcher.parallel=2), "
    "or this one for itself with measurement.turns.members=1."
)


def _nobody(_: str) -> None:
    pass


@dataclass(kw_only=True)
class Turns:
    """One process's part in the turns of a machine; a context manager, with whose end it leaves them.

    Args:
        directory: what the members share; None where a process is alone.
        of: the run directory of the member.
        members: the first run waits until so many are there.
        runs: of one turn.
        wait_s: longest wait for a turn.
        began_unix_s: when this member was started: who measured after that is of its turns, who died before is not.

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

    @property
    def name(self) -> str:
        """The member's: its run directory's, told apart from others of that name."""
        return f"{self.of.name[:40]}_{sha256(os.fsencode(self.of.absolute())).hexdigest()[:6]}"

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
                # Who was started while others measured waits for nobody.
                there = (one is mine or one["at"] >= self.began_unix_s or self._lives(name) for name, one in ran)
                self._id, self._gathered = state["id"], any(there)
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
        with suppress(InputError, MeasurementError), self._state() as state:  # the lock falls with the process anyway
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
        while not self._left and (whose := self._whose()):
            waited = time.monotonic() - began
            self.waited_s = before + waited
            if must_stop():
                return False
            if waited > self.wait_s:
                raise MeasurementError(
                    f"waited {self.wait_s:g} s for a turn (measurement.turns.wait_s): {whose}\n"
                    f"What was measured is kept. {_MISSING if self._lacks else _MISSED}"
                )
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

    def _whose(self) -> str:
        """What is waited for, in words; empty once the turn is this member's. One that is used up is passed on."""
        with self._state() as state:
            members, holder = state["members"], state["holder"]
            members[self.name]["joined"] = True
            held = holder in members and members[holder]["joined"] and self._lives(holder)
            if not (self._gathered or held):
                here = sum(one["joined"] and self._lives(name) for name, one in members.items())
                new = [name for name, one in members.items() if not one["turns"] and one["at"] >= self.began_unix_s]
                died = sum(not self._lives(name) for name in new)
                if here + max(died, len(list(self._folder.glob("*.gone")))) < self.members:
                    ready = f"{here} of {count(self.members, 'member')} {'is' if here == 1 else 'are'} ready"
                    return "; ".join([ready, *self._unready(members)])
            self._gathered, self._lacks = True, False
            if not held or (holder == self.name and state["turn"] == self.number):
                self._grant(state)
            if state["holder"] != self.name:
                return f"{state['holder']} has it"
            self.returned = self.number not in (None, state["turn"] - 1)
            self.number, self._left = state["turn"], self.runs
            return ""

    def _unready(self, members: dict[str, Any]) -> list[str]:
        """What became of the other members that are not ready, in words: those of which was heard last."""
        alive = {name: self._lives(name) for name in members}
        self._lacks = sum(alive.values()) < self.members
        others = [name for name, one in members.items() if name != self.name and not (one["joined"] and alive[name])]
        others.sort(key=lambda name: members[name]["at"])
        words = []
        for name in others[-_NAMED:]:
            turns = members[name]["turns"]
            ended = f"ended after {count(turns, 'turn')}" if turns else "ended before its first turn"
            words.append(f"{name} {'loads' if alive[name] else ended}")
        return words

    def _grant(self, state: dict[str, Any]) -> None:
        """Give the turn to the next member that lives and waits, or to its holder again.

        There and back, A B C C B A: in any other order a steady drift would befall one member more than another.
        """
        holder, step = state["holder"], state["step"]
        there = list(state["members"])[::step]
        rest = there[there.index(holder) + 1 :] if holder in there else there
        state["holder"] = None
        for name, way in [*((n, step) for n in rest), *((n, -step) for n in there[::-1]), *((n, step) for n in there)]:
            if state["members"][name]["joined"] and self._lives(name):
                state |= {"holder": name, "step": way, "turn": state["turn"] + 1}
                state["members"][name]["turns"] += 1
                with suppress(OSError):
                    descriptor = self._open(name)
                    os.write(descriptor, b".")
                    os.close(descriptor)
                return

    def _lives(self, name: str) -> bool:
        """Whether a process holds the lock of a member."""
        try:
            descriptor = self._open(name)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

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
    def _state(self, *, make: bool = False) -> Iterator[dict[str, Any]]:
        """``turns.json``, locked; what was changed is written.

        Raises:
            InputError: the folder cannot be used from the start (``make``), or the file is something else.
            MeasurementError: the folder cannot be used any more.
        """
        path = self._folder / "turns.json"
        try:
            if make:
                self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "turns.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
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
