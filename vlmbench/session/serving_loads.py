"""Loads, point by point: requests made ready, sent, and written as rows while the answers come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from vlmbench.engines.endpoint.arrivals import due_times
from vlmbench.engines.endpoint.bodies import chat_body
from vlmbench.engines.endpoint.client import ExchangeError
from vlmbench.engines.endpoint.driver import Driver, LoadFacts, Role
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result
from vlmbench.engines.endpoint.loop import LoopTurns, run
from vlmbench.engines.endpoint.pairs import Asker, Half, ask_pairs
from vlmbench.engines.endpoint.prometheus import Window, between
from vlmbench.engines.endpoint.server import Server, unreachable
from vlmbench.engines.endpoint.settings import Load
from vlmbench.engines.endpoint.sizes import Sizes
from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.machine.wall_clock import unix_s
from vlmbench.records.store import RecordStore
from vlmbench.request import Request
from vlmbench.runner.loop import Progress
from vlmbench.runner.plan import Series, SeriesState
from vlmbench.schema import Mode, Record, Status
from vlmbench.sweep import LOAD_PREFIX, shuffled

_MODE = str(Mode.INSTRUMENTED)
_ROUNDS = 4  # of all users, at least, in one load of a point that is repeated
_REFUSES = frozenset({400, 413, 422})  # the request itself is wrong for this server: too long, too many images …


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One load that was sent: where, what it cost, and what the server counted meanwhile.

    Args:
        point_id: of the point.
        session: of the run directory.
        load: how requests were sent.
        facts: what it was like and what it cost the client.
        window: the server's counters; None where it has none, or was started anew meanwhile.
    """

    point_id: str
    session: int
    load: Load
    facts: LoadFacts
    window: Window | None

    def as_dict(self) -> dict[str, Any]:
        """For ``loads.json``."""
        return {
            "point_id": self.point_id,
            "session": self.session,
            "load": asdict(self.load),
            **asdict(self.facts),
            "server": None if self.window is None else asdict(self.window),
            "flags": list(self.flags),
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """What makes the point doubtful."""
        answered = sum(self.facts.sent.values()) - sum(self.facts.failed.values())
        return () if self.window is None else self.window.flags(answered)


def exchanger_of(server: Server, turns: LoopTurns) -> Exchanger:
    """What sends requests to a server, for one loop."""
    endpoint = server.endpoint
    return Exchanger(
        client=server.client,
        target=server.client.address.target("chat/completions"),
        headers=server.headers,
        kind=server.kind,
        reuse=endpoint.connection == "reuse",
        timeout_s=endpoint.timeout_s,
        silence_s=endpoint.silence_s,
        turns=turns,
    )


def order_of(server: Server, request: Request, repeat: int, salt: str) -> Order:
    """A request, encoded.

    Args:
        repeat: counts the runs of one request.
        salt: makes its images unlike those of all others, where the server's caches are to be defeated.

    Raises:
        SampleError: an image cannot be read or decoded.
    """
    endpoint = server.endpoint
    body = chat_body(
        request,
        model=endpoint.model,
        kind=server.kind,
        salt=salt if endpoint.cache == "defeat" else None,
        extra=endpoint.extra_body,
    )
    return Order(
        sample_id=request.sample.sample_id,
        repeat=repeat,
        body=body,
        asked_tokens=request.output.max_new_tokens,
        forced=request.output.forced,
        values={"num_images": len(request.images), "bytes_sent": len(body)},
    )


def sizes_of(server: Server, base: Request, run_id: str) -> Sizes:
    """What asks a server which images give how many vision tokens, one request after the other."""
    turns, asked = LoopTurns(), itertools.count()

    def ask(request: Request) -> Result:
        order = order_of(server, request, 0, f"{run_id}/sizes/{next(asked)}")

        async def send() -> Result:
            exchanger = exchanger_of(server, turns)
            payload = exchanger.payload(order.body)
            try:
                connection = await exchanger.connection()
            except ExchangeError as error:
                raise unreachable(error, server.endpoint) from error
            return await exchanger.send(order, payload, connection, time.monotonic_ns())

        return run(send(), turns)

    return Sizes(ask=ask, base=base)


class Answerer(Protocol):
    """What answers the requests of a load."""

    def order(self, request: Request, repeat: int, name: str) -> Order:
        """Make a request ready to be sent.

        Args:
            repeat: counts the runs of one request.
            name: makes its images unlike those of all others.

        Raises:
            SampleError: an image cannot be read or decoded.
            UnreachablePointError: it cannot be asked what it aims at.
        """

    def send(self, **sending: Any) -> tuple[LoadFacts, Window | None]:
        """Send a load: the arguments are those of :class:`vlmbench.engines.endpoint.driver.Sending`.

        Returns:
            what it was like, and what the server counted meanwhile (None where nothing is known of that).
        """


@dataclass(kw_only=True)
class OverHttp:
    """A server; see :class:`Answerer`.

    Args:
        server: that answers.
        run_id: of this session: makes images new to the server.
        sizes: finds the images of a number of vision tokens; None where none is aimed at.
    """

    server: Server
    run_id: str
    sizes: Sizes | None = None
    turns: LoopTurns = field(init=False, default_factory=LoopTurns)

    def order(self, request: Request, repeat: int, name: str) -> Order:
        """A request, encoded."""
        if self.sizes is not None:
            request = self.sizes.resolve(request)
        return order_of(self.server, request, repeat, f"{self.run_id}/{name}")

    def send(self, **sending: Any) -> tuple[LoadFacts, Window | None]:
        """Send a load, with the server's counters looked at before and after."""
        before = run(self.server.counters())
        facts = run(Driver(exchanger=exchanger_of(self.server, self.turns), **sending).run(), self.turns)
        after = run(self.server.counters())
        return facts, None if before is None or after is None else between(before, after)

    def ask(
        self, base: Request, pairs: int, *, store: RecordStore, seed: int, stop_requested: Callable[[], bool]
    ) -> str | None:
        """Send paired requests after the workload; returns why a contrast was left out, None where none was.

        Args:
            pairs: of each contrast.
            seed: of their order.

        Raises:
            SampleError: its image cannot be read.
        """
        asker = Asker(
            endpoint=self.server.endpoint, exchanger=exchanger_of(self.server, self.turns), run_id=self.run_id
        )

        def done(half: Half) -> bool:
            return (half.point_id, str(half.number), 0, _MODE) in store

        def took(half: Half, result: Result) -> None:
            if done(half):
                return
            store.append(
                Record(
                    point_id=half.point_id,
                    sample_id=str(half.number),
                    repeat=0,
                    mode=Mode.INSTRUMENTED,
                    status=Status.OK if result.ok else Status.ERROR,
                    session=store.session,
                    started_unix_s=unix_s(),
                    values=result.values,
                    flags=result.flags,
                    reason=result.reason,
                )
            )

        asked = ask_pairs(asker, base, pairs=pairs, seed=seed, done=done, took=took, stop_requested=stop_requested)
        return run(asked, self.turns)


@dataclass(kw_only=True)
class Loads:
    """Measures series of requests under load, into one store.

    Args:
        answerer: a server, or an engine of this process.
        load: how requests are sent, where the sweep turns nothing of it.
        store: open; what is in it already is not measured again.
        seed: of all orders.
        progress: told after every run.
        stop_requested: asked often.
        max_errors_in_a_row: after this many a point ends.
    """

    answerer: Answerer
    load: Load
    store: RecordStore
    seed: int
    progress: Progress
    stop_requested: Callable[[], bool]
    max_errors_in_a_row: int
    episodes: list[Episode] = field(init=False, default_factory=list)

    def run(self, series: Sequence[Series]) -> list[SeriesState]:
        """Measure everything that is not in the store yet; returns how each series ended."""
        states = [SeriesState(series=s, jobs=s.jobs(self.seed)) for s in series]
        self._recall(states)
        self.progress.expect(sum(s.series.expected for s in states))
        round_index = 0
        while active := [s for s in states if s.ended is None and not self.stop_requested()]:
            for index in shuffled(list(range(len(active))), seed=self.seed, round_index=round_index):
                if not self.stop_requested():
                    self._step(active[index])
            round_index += 1
        for state in states:
            if state.ended is None:
                state.ended = "interrupted"
        return states

    def _recall(self, states: Sequence[SeriesState]) -> None:
        """What earlier sessions measured."""
        for state in states:
            state.measured = self.store.counts[state.series.point_id, _MODE, str(Status.OK)]
        wanted = {s.series.point_id: s for s in states if s.series.stopping}
        if not wanted or not len(self.store):
            return
        for row in self.store.rows():
            state_of = wanted.get(row["point_id"])
            if state_of and row["status"] == Status.OK and row["mode"] == Mode.INSTRUMENTED:
                state_of.times_ms.append(row["T_request"])

    def _step(self, state: SeriesState) -> None:
        """One load on a point: all of a data set, or as many repeats of one request as its rule wants at least."""
        if state.finished():
            self.progress.end(state.series.point_id)
            return
        series = state.series
        users = self.load_at(series.axes).concurrency
        limit = None if series.stopping is None else max(series.stopping.min_samples, _ROUNDS * users)
        measured = list(self._orders(state, limit))
        if measured and state.ended is None:
            self._send(state, measured)
        elif state.ended is None:
            state.ended = "all_measured"
        if state.ended is None and series.stopping is None and not self.stop_requested():
            state.ended = "all_measured"
        if state.finished():
            self.progress.end(series.point_id)

    def _orders(self, state: SeriesState, limit: int | None) -> Iterator[Order]:
        """The requests of a point that are not measured yet, encoded; one that cannot be is an error row."""
        series = state.series
        taken = 0
        for index, repeat in state.jobs:
            if self.stop_requested():
                return
            name = f"{series.point_id}/{index}"
            try:
                request = series.request(index)
                name = request.sample.sample_id
                if (series.point_id, name, repeat, _MODE) in self.store:
                    self.progress.advance(series.point_id, earlier=True)
                    continue
                order = self.answerer.order(request, repeat, f"{series.point_id}/{name}/{repeat}")
            except (SampleError, UnreachablePointError) as error:
                if isinstance(error, UnreachablePointError) and _turns_requests(series):
                    self._skip(state, str(error))
                    return
                self._count(state, ok=False, reason=str(error))
                values = {"error_class": "sample"}
                self._write(state, key=(name, repeat), status=Status.ERROR, values=values, reason=str(error))
                continue
            yield order
            taken += 1
            if taken == limit:
                return

    def _spare(self, series: Series, load: Load) -> list[Order]:
        """Requests for warm-up and for keeping the load up: samples of the same point, with images of their own."""
        wanted = load.warmups + (max(load.warmups, 2 * load.concurrency) if load.warmups and load.kind != "none" else 0)
        spare: list[Order] = []
        for number in range(4 * wanted):
            if len(spare) == wanted:
                break
            try:
                request = series.request(number % series.size)
                spare.append(
                    self.answerer.order(request, len(spare), f"{series.point_id}/spare/{len(self.episodes)}/{number}")
                )
            except (SampleError, UnreachablePointError):
                continue  # it has its row where it is measured
        return spare

    def load_at(self, axes: Mapping[str, Any]) -> Load:
        """The load of a point: as configured, with what the sweep turns."""
        turned = {name.removeprefix(LOAD_PREFIX): value for name, value in axes.items() if name.startswith(LOAD_PREFIX)}
        return replace(self.load, **turned)

    def _send(self, state: SeriesState, measured: Sequence[Order]) -> None:
        series, load = state.series, self.load_at(state.series.axes)
        spare = self._spare(series, load)
        every_s, self.store.fsync_every_s = self.store.fsync_every_s, None  # the disk must not stop this thread
        facts, window = self.answerer.send(
            load=load,
            measured=measured,
            spare=spare,
            arrivals=due_times(load, f"{self.seed}/{series.point_id}") if load.kind == "open" else iter(()),
            took=lambda result, role: self._took(state, result, role),
            stop_requested=lambda: self.stop_requested() or state.ended is not None,
        )
        self.store.fsync_every_s = every_s
        session = self.store.session
        self.episodes.append(Episode(point_id=series.point_id, session=session, load=load, facts=facts, window=window))

    def _took(self, state: SeriesState, result: Result, role: Role) -> None:
        """Write the row of one result."""
        order, status = result.order, Status.OK if result.ok else Status.ERROR
        flags = result.flags
        if role is not Role.MEASURED:
            status, flags = Status.WARMUP, (*flags, *(["filler"] if role is Role.FILLER else []))
        key = (order.sample_id, order.repeat)
        if role is Role.MEASURED and _refuses(result) and state.series.axes and not state.measured:
            if state.ended is None:  # one row says it
                self._skip(state, result.reason or "refused", result.values)
            return
        values = {**result.values, "load_number": len(self.episodes)}
        self._write(state, key=key, status=status, values=values, flags=flags, reason=result.reason)
        if role is Role.MEASURED:
            self._count(state, ok=result.ok, reason=result.reason)
            if result.ok and state.series.stopping is not None:
                state.times_ms.append(float(result.values["T_request"]))

    def _skip(self, state: SeriesState, reason: str, values: Mapping[str, Any] | None = None) -> None:
        """Note that the server cannot be asked a point of a sweep: its row, of no one sample, says why."""
        state.fail(reason)
        state.ended = "skipped"
        self._write(state, key=("", 0), status=Status.SKIPPED, values=values or {}, reason=reason)

    def _count(self, state: SeriesState, *, ok: bool, reason: str | None) -> None:
        self.progress.advance(state.series.point_id)
        if ok:
            state.measured += 1
            state.errors_in_a_row = 0
            return
        state.fail(reason or "no reason was given")
        if state.errors_in_a_row >= self.max_errors_in_a_row:
            state.ended = "too_many_errors"

    def _write(
        self,
        state: SeriesState,
        *,
        key: tuple[str, int],
        status: Status,
        values: Mapping[str, Any],
        flags: tuple[str, ...] = (),
        reason: str | None = None,
    ) -> None:
        """Append a row; ``key`` is the sample and the repeat."""
        self.store.append(
            Record(
                point_id=state.series.point_id,
                sample_id=key[0],
                repeat=key[1],
                mode=Mode.INSTRUMENTED,
                status=status,
                session=self.store.session,
                started_unix_s=unix_s(),
                axes=state.series.axes,
                values=values,
                flags=flags,
                reason=reason,
            )
        )


def _turns_requests(series: Series) -> bool:
    """Whether the sweep turns the requests of a point, not the load alone: what one cannot reach, none can."""
    return any(not name.startswith(LOAD_PREFIX) for name in series.axes)


def _refuses(result: Result) -> bool:
    """Whether the server will refuse every request of this kind."""
    return result.error_class == "http" and result.http_status in _REFUSES
