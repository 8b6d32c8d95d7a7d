"""What every run costs beside its times: FLOPs, bytes and floors on the model's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmbench.cost.bytes import Parameters
from vlmbench.cost.kept_tokens import under_method
from vlmbench.cost.run_costs import Costs, quantised_as
from vlmbench.machine.peaks import DevicePeaks, resolve_peaks
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.models.weight_bytes import in_memory
from vlmbench.runner.execution import PreparedRun
from vlmbench.runner.experts import ExpertsSeen
from vlmbench.runner.loop import Annotate


def costs_of(model: VisionLanguageModel, device_peaks: str) -> Costs:
    """Prepare the costs of runs on a model's device; the counter is built now, before anything is timed.

    Args:
        device_peaks: where the device's peaks come from: ``table``, ``measured``, ``auto`` or ``none``.
    """
    dtype = str(model.facts["dtype"]).removeprefix("torch.")
    peaks = resolve_peaks(device_peaks, model.device, dtype)
    if peaks.peaks is not None and (processes := model.facts.get("processes", 1)) > 1:
        peaks = replace(peaks, peaks=_of_several(peaks.peaks, processes))
    config = model.module.config
    stored = Parameters.of_model(model.module, model.anatomy, size=in_memory) if quantised_as(config) else None
    costs = Costs(config, dtype=dtype, peaks=peaks, anatomy=model.anatomy, stored=stored)
    costs.counter()
    return costs


def _of_several(one: DevicePeaks, count: int) -> DevicePeaks:
    """The peaks of several like devices that work on one model at the same time."""
    return replace(
        one,
        flops_per_s=count * one.flops_per_s,
        bytes_per_s=count * one.bytes_per_s,
        source=f"{count} x ({one.source})",
    )


def annotator(costs: Costs, model: VisionLanguageModel) -> Annotate:
    """Return the function that adds FLOPs, bytes and floors to a run, from its prepared inputs.

    Args:
        model: loaded; a mixture's routers are looked at in an extra run of a request.
    """
    mixture = costs.closed is not None and costs.closed.decoder.experts is not None
    experts = ExpertsSeen(model=model) if mixture else None

    def annotate(run: PreparedRun, values: Mapping[str, Any]) -> Mapping[str, Any]:
        row = costs.columns(
            run.prepared.inputs,
            run.prepared.counts,
            output_tokens=values["num_output_tokens"],
            batch_size=values["batch_size"],
            each=run.prepared.each,
            ended_apart=bool(values.get("tokens_after_end")),
            visits=None if experts is None else experts.of(run, values["num_output_tokens"]),
        )
        if run.prepared.cached is not None:
            return decode_alone(row)
        if run.prepared.num_frames is not None:  # the closed form knows images
            return {name: value for name, value in row.items() if not name.endswith("_closed")}
        if run.request.intervention is None:
            return row
        return under_method(
            row,
            costs.closed,
            run.prepared.counts,
            values,
            output_tokens=values["num_output_tokens"],
            batch_size=values["batch_size"],
        )

    return annotate


def decode_alone(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cost columns of a run over a filled cache: those of its decode, which are also all that is told of it."""
    decode = {name: value for name, value in row.items() if "llm_decode" in name}
    whole = {
        name.replace("llm_decode", "total"): value
        for name, value in decode.items()
        if name.replace("llm_decode", "total") in row
    }
    note = f"{row['flops_note']}; of the decode alone: the cache was filled before the run"
    return {**decode, **whole, "flops_note": note}
