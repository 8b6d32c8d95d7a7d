"""What a reader must know of where numbers come from: the provenance as a short table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vlmbench.analysis.floors import peaks_of
from vlmbench.figures.roofline import si
from vlmbench.figures.theme import dataset_name, device_name, dtype_name, model_name, runtime_name
from vlmbench.records.comparable import turns_taken
from vlmbench.text import amount

Provenance = Mapping[str, Any]


def facts(provenances: Sequence[Provenance]) -> list[tuple[str, str]]:
    """(name, value) of what is known; values that differ between the runs of a study stand beside each other."""
    found: dict[str, dict[str, None]] = {}
    for provenance in provenances:
        for name, value in _facts(provenance):
            found.setdefault(name, {})[value] = None
    return [(name, "; ".join(values)) for name, values in found.items()]


def software(provenance: Provenance) -> str:
    """Package versions in one line."""
    packages = (provenance.get("software") or {}).get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _facts(provenance: Provenance) -> Iterator[tuple[str, str]]:
    if not provenance:
        return
    for name, value in (*_model(provenance), *_machine(provenance), *_run(provenance)):
        if value not in (None, "", "None"):
            yield name, str(value)


def _model(provenance: Provenance) -> Iterator[tuple[str, Any]]:
    model = provenance.get("model") or {}
    yield "Model", model_name(provenance)
    yield "Architecture", model.get("architecture")
    revision = model.get("revision")
    yield "Weights", f"{model.get('weights') or ''}{f', revision {revision}' if revision else ''}"
    counted = model.get("parameters")  # by part, or the sum alone
    total = counted.get("total") if isinstance(counted, Mapping) else counted
    yield "Parameters", amount(int(total)) if total else None
    yield "Runtime", runtime_name(provenance)
    yield "Dtype", dtype_name(provenance)
    yield "Quantisation", model.get("quantization")
    yield "Data", dataset_name(provenance)


def _machine(provenance: Provenance) -> Iterator[tuple[str, Any]]:
    device, host = provenance.get("device") or {}, provenance.get("host") or {}
    yield "Device", device_name(provenance)
    if memory := device.get("memory_bytes") or device.get("total_memory_bytes"):
        yield "Device memory", f"{memory / 2**30:.1f} GiB"
    for name, key, unit in (("Driver", "driver", ""), ("CUDA", "cuda", ""), ("Power cap", "power_cap_w", " W")):
        yield name, f"{device[key]}{unit}" if device.get(key) else None
    if peaks := peaks_of(provenance):
        rates = f"{si(peaks.flops_per_s)}FLOP/s, {si(peaks.bytes_per_s)}B/s"
        yield "Device peaks", f"{rates} ({peaks.source})" if peaks.source else rates
    cores = host.get("cores_usable")
    yield "Host", f"{host.get('cpu') or ''}{f', {cores} cores' if cores else ''}".strip(", ")
    yield "System", (provenance.get("software") or {}).get("os")
    yield "Python", (provenance.get("software") or {}).get("python")


def _run(provenance: Provenance) -> Iterator[tuple[str, Any]]:
    yield "Seed", provenance.get("seed")
    yield "Configuration", str(provenance.get("fingerprint") or "")[:16]
    for session in provenance.get("sessions") or []:
        start, end = session.get("started_unix_s"), session.get("ended_unix_s")
        if start:
            day = datetime.fromtimestamp(start, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
            yield "Measured", f"{day}{f', {(end - start) / 60:.1f} min' if end else ''}"
        if turns := turns_taken(session):
            yield "In turns", f"{turns['runs']} runs each, of {turns['members']} processes of this machine"
        git = ((session.get("code") or {}).get("vlmbench") or {}).get("git") or {}
        if git.get("commit"):
            yield "Code", f"{git['commit'][:12]}{' with local changes' if git.get('dirty') else ''}"
        for warning in session.get("warnings") or []:
            yield "Warned", str(warning)
