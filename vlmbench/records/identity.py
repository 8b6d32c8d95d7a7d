"""What makes rows incomparable: hardware, dtype and runtime of the sessions that measured them. Standard library only.

Each session of a run directory stores what it ran on. Where these differ, a reader of the directory must be told:
what stands at the top of its provenance (and so in captions) then names all of them: ``NVIDIA A100 + NVIDIA H200``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Where a session has it, where the top of a provenance has it (None: nowhere else).
_COMPARED: tuple[tuple[tuple[str, str], tuple[str, str] | None], ...] = (
    (("device", "type"), None),
    (("device", "name"), None),
    (("device", "power_limit_w"), None),
    (("device", "threads"), None),
    (("model", "architecture"), None),
    (("model", "weights"), None),
    (("model", "revision"), None),
    (("model", "quantization"), None),
    (("model", "dtype"), ("runtime", "dtype")),
    (("model", "attention"), ("runtime", "attention")),
    (("model", "experts_implementation"), ("runtime", "experts_implementation")),
    (("model", "experts_implementation_decode"), ("runtime", "experts_implementation_decode")),
    (("model", "processes"), ("runtime", "processes")),
    (("model", "devices"), ("runtime", "devices")),
)
_JOINT = " + "


def unlike(sessions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What differs between sessions: a name (``device.name``, ``runtime.dtype``) to its values, in their order.

    What a session does not say (an older one, or a GPU that does not tell its power limit) is no difference. Another
    GPU of the same kind, another host, and other versions of driver or packages are none either: those are warned of.
    """
    found: dict[str, list[Any]] = {}
    for path, shown in _COMPARED:
        values = [value for session in sessions if (value := _value(session, path)) is not None]
        if len(different := list(dict.fromkeys(values))) > 1:
            found[".".join(shown or path)] = different
    return found


def unlike_words(found: Mapping[str, Sequence[Any]]) -> list[str]:
    """What :func:`unlike` found, in words: ``device.name: NVIDIA A100, then NVIDIA H200``."""
    return [f"{name}: {', then '.join(map(str, values))}" for name, values in found.items()]


def with_mixture_named(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance whose top says all that its sessions ran on, where they are unlike; else as it is.

    Texts that differ are joined by `` + ``; numbers (of GPUs, say) stay the first session's. ``unlike`` lists, in
    words, what differs.
    """
    sessions = provenance.get("sessions")
    sessions = [s for s in sessions if isinstance(s, Mapping)] if isinstance(sessions, list) else []
    found = unlike(sessions)
    if not found:
        return dict(provenance)
    whole = {**provenance, "unlike": unlike_words(found)}
    for path, shown in _COMPARED:
        values = found.get(".".join(shown or path), [])
        if not values or not all(isinstance(value, str) for value in values):
            continue
        for part, name in (path, shown or path):
            if isinstance(section := whole.get(part), Mapping) and name in section:
                whole[part] = {**section, name: _JOINT.join(values)}
    return whole


def _value(session: Mapping[str, Any], path: tuple[str, str]) -> Any:
    section = session.get(path[0])
    value = section.get(path[1]) if isinstance(section, Mapping) else None
    if isinstance(value, str):
        return value.removeprefix("torch.")
    if isinstance(value, float):
        return round(value)  # watts, as a driver reports them
    return value if isinstance(value, int) else None
