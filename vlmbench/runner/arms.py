"""Arms of a comparison: a method, its baseline and its controls at each point of a sweep; a run under a method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from vlmbench.errors import ConfigError, UnreachablePointError
from vlmbench.interventions.downsample import Downsample
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.language import refuse_captured
from vlmbench.interventions.marks import marks_of
from vlmbench.interventions.none import NoIntervention
from vlmbench.interventions.protocol import Attachment, Intervention, KeepsTokens, ProvesItself
from vlmbench.interventions.restored import restored
from vlmbench.models.protocol import InReplays, Loop, Prepared, VisionLanguageModel
from vlmbench.request import Output, Request
from vlmbench.sweep import INTERVENTION_PREFIX, Point

BASELINE, METHOD, CONTROL = "baseline", "method", "control"
_KEEP = "keep"
PROVEN_KEEP = 0.5
_KERNEL_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm at one point of a sweep; a series is made of it as of a point.

    Args:
        point: the point without the method's axes.
        intervention: the method with its arguments.
        role: baseline, method or control.
    """

    point: Point
    intervention: Intervention
    role: str

    @property
    def target(self) -> dict[str, Any]:
        """The point's axes, the method's name and its arguments."""
        given = {f"{INTERVENTION_PREFIX}{name}": _plain(v) for name, v in self.intervention.arguments.items()}
        return {**self.point.target, "intervention": self.intervention.name, **given}

    @property
    def id(self) -> str:
        """Stable name, such as ``intervention=downsample,intervention.keep=0.5``."""
        return ",".join(f"{name}={value}" for name, value in self.target.items())

    def apply(self, request: Request) -> Request:
        """The point's request, under the method."""
        return replace(self.point.apply(request), intervention=ArmOf(method=self.intervention, role=self.role))


@dataclass(frozen=True, kw_only=True)
class ArmOf:
    """What a request carries: the method that changes the model for it, and what it is compared as."""

    method: Intervention
    role: str

    @property
    def columns(self) -> dict[str, Any]:
        """For each of its rows."""
        given = self.method.arguments
        words = ",".join(f"{name}={_plain(value)}" for name, value in given.items())
        found: dict[str, Any] = {
            "intervention": self.method.name,
            "intervention_arguments": words,
            "intervention_role": self.role,
        }
        if isinstance(given.get(_KEEP), int | float):
            found["intervention_keep"] = float(given[_KEEP])
        return found

    @property
    def label(self) -> str:
        """Name and arguments, in one word for what was seen of it before."""
        return f"{self.method.name}({self.columns['intervention_arguments']})"


def _plain(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


def arms(points: Iterable[Point], intervention: Intervention, *, controls: bool) -> list[Point] | list[Arm]:
    """The arms that are measured, interleaved, at each point of a sweep.

    Args:
        points: of the sweep; axes of the method may be among theirs.
        intervention: the configured method; with none, the points as they are.
        controls: whether a method that keeps a share of the vision tokens gets its controls: the same number of tokens
            at random, and from a smaller image.

    Raises:
        ConfigError: an axis of an argument that the method does not have, or a value that it refuses.
    """
    given = list(points)
    of_method = any(axis.name.startswith(INTERVENTION_PREFIX) for point in given for axis in point.axes)
    if isinstance(intervention, NoIntervention) and not of_method:
        return given
    found: dict[str, Arm] = {}
    for point in given:
        bare = point.without(INTERVENTION_PREFIX)
        method = _at(point, intervention)
        wanted: list[tuple[Intervention, str]] = [(NoIntervention(), BASELINE), (method, METHOD)]
        if controls:
            wanted += [(control, CONTROL) for control in controls_of(method)]
        for each, role in wanted:
            arm = Arm(point=bare, intervention=each, role=role)
            found.setdefault(arm.id, arm)
    return list(found.values())


def _at(point: Point, intervention: Intervention) -> Intervention:
    """The method with the arguments that a point gives it."""
    method: Any = intervention
    for axis, value in zip(point.axes, point.values, strict=True):
        name = axis.name.removeprefix(INTERVENTION_PREFIX)
        if name == axis.name:
            continue
        known = sorted(f.name for f in fields(method) if f.init) if is_dataclass(method) else []
        if name not in known:
            has = f"has the arguments {', '.join(known)}" if known else "has no arguments; choose a method"
            raise ConfigError(f"axis '{axis.name}': intervention={method.name} {has}")
        try:
            method = replace(method, **{name: value})
        except ValueError as error:
            raise ConfigError(f"axis '{axis.name}': {error}") from error
    checked: Intervention = method
    return checked


def controls_of(method: Intervention) -> list[Intervention]:
    """What a method that keeps a share of the tokens has to beat: as many at random, as many of a smaller image."""
    if not isinstance(method, KeepsTokens) or method.keep == 1:
        return []
    found: list[Intervention] = []
    if method.arguments.get("selector") != "random":
        found.append(_by_chance(method, method.keep))
    return [*found, Downsample(keep=method.keep)]


def _by_chance(method: Any, keep: float) -> Intervention:
    """The same method with tokens chosen at random, where it has a selector; else between projector and model."""
    if any(f.name == "selector" for f in fields(method)):
        chosen: Intervention = replace(method, selector="random")
        return chosen
    return KeepAfterProjector(keep=keep, selector="random")


def settled(model: VisionLanguageModel, request: Request) -> Request:
    """A request as its arm asks it, with its targets turned into settings; images in memory.

    Raises:
        UnreachablePointError: the model cannot be asked so.
    """
    if request.intervention is not None:
        if request.over_cache:
            raise UnreachablePointError("a method is measured on whole requests: leave kv_length and reuse_cache out")
        request = request.intervention.method.request(request, model)
    return model.resolve(request)


@contextmanager
def attached(model: VisionLanguageModel, request: Request, prepared: Prepared) -> Iterator[Attachment | None]:
    """The model changed for one run by the request's method, and as it was afterwards; None without a method.

    Raises:
        UnreachablePointError: the method cannot be applied.
        UnrestoredModelError: it left something on the model.
    """
    arm = request.intervention
    if arm is None or isinstance(arm.method, NoIntervention | Downsample):  # the model stays as it is
        yield None
        return
    loop: Loop | None = getattr(model, "loop", None)
    if loop is None and model.closing_facts:
        raise UnreachablePointError(
            f"{arm.method.name} changes the model's code, which this engine runs itself; compare arms with "
            "runtime=eager or cudagraph"
        )
    marks = marks_of(model.module)
    with restored(model.module, arm.method.name):
        attachment = arm.method.attach(model)
        marks.active = True
        try:
            attachment.begin(prepared)
            if loop is None:
                yield attachment
                return
            if not isinstance(attachment, InReplays):
                refuse_captured(model, method=arm.method.name)
            with loop.under(attachment):
                yield attachment
        finally:
            marks.active = False
            attachment.detach()


@dataclass(kw_only=True)
class Arms:
    """What was seen of each arm before it was measured: its proof, and the attention kernels that it runs.

    Args:
        model: loaded.
    """

    model: VisionLanguageModel
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: dict[str, dict[str, str]] = field(default_factory=dict)
    _refused: dict[str, Exception] = field(default_factory=dict)

    def ready(self, point_id: str, request: Request, prepared: Prepared) -> Mapping[str, Any]:
        """Prove an arm's method and look at its kernels, once for each point; columns for its rows.

        Raises:
            UnreachablePointError: the method does not apply to this model, or failed its proof.
            UnrestoredModelError: it left something on the model.
        """
        arm = request.intervention
        if arm is None:
            return {}
        if point_id not in self.kernels:
            if point_id in self._refused:
                raise self._refused[point_id]
            moved = self.model.transfer(prepared)
            try:
                with restored(self.model.module, arm.method.name):
                    self._prove(arm, moved)
                self._prove_captured(request, moved)
                self.kernels[point_id] = self._kernels(request, moved)
            except Exception as error:
                self._refused[point_id] = error
                raise
        return {**arm.columns, **self.kernels[point_id]}

    def _prove(self, arm: ArmOf, prepared: Prepared) -> None:
        """The method at half of the tokens: what holds there holds at other shares, whose counts every run observes."""
        from vlmbench.interventions.proof import check

        if isinstance(arm.method, ProvesItself) and arm.label not in self.proofs:
            self.proofs[arm.label] = dict(arm.method.prove(self.model, prepared))
        if not isinstance(arm.method, KeepsTokens):
            return
        half = replace(arm, method=arm.method.keeping(PROVEN_KEEP))
        if half.label in self.proofs:
            return
        proof = check(self.model, half.method, prepared)
        if proof is not None:
            self.proofs[half.label] = proof.as_dict()

    def _prove_captured(self, request: Request, prepared: Prepared) -> None:
        """The arm as an engine's loop replays it against the arm as Python code, which proved itself."""
        from vlmbench.interventions.proof import TOKENS, answer, answer_of_loop, compare_captured

        arm = request.intervention
        if getattr(self.model, "loop", None) is None or arm is None or not isinstance(arm.method, KeepsTokens):
            return
        label = f"{arm.label} as captured"
        if label in self.proofs:
            return
        with attached(self.model, request, prepared):
            plain = answer(self.model, prepared, TOKENS)
        with attached(self.model, request, prepared):
            captured = answer_of_loop(self.model, prepared, TOKENS)
        half = replace(arm, method=arm.method.keeping(PROVEN_KEEP))
        tolerance = self.proofs[half.label]["tolerance"]
        self.proofs[label] = compare_captured(
            plain, captured, tolerance, of=f"{arm.label} of {self.model.facts['name']}"
        )

    def _kernels(self, request: Request, prepared: Prepared) -> dict[str, str]:
        from vlmbench.interventions.kernels import watch_kernels
        from vlmbench.interventions.proof import answer

        short = replace(prepared, output=Output(max_new_tokens=_KERNEL_TOKENS, forced=True))
        loop: Loop | None = getattr(self.model, "loop", None)
        with attached(self.model, request, short):
            self.model.ready(short)
        with (
            attached(self.model, request, short),
            nullcontext() if loop is None else loop.python(),  # a replay asks for no kernel that could be seen
            watch_kernels(self.model) as seen,
        ):
            if self.model.compile:
                answer(self.model, short, _KERNEL_TOKENS)  # uncompiled: what is compiled must not hold the watching
            else:
                self.model.generate(short)
        return seen[0].values()
