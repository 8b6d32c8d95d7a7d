"""What can be refused before anything heavy is imported: paths that are not there, devices that are not here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.cli import environment
from vlmbench.errors import ConfigError, DeviceError, InputError, ModelError, VlmbenchError
from vlmbench.hiding import with_environment
from vlmbench.machine.peaks import unknown_device
from vlmbench.sweep import LOAD_PREFIX, axis_names

if TYPE_CHECKING:
    from vlmbench.session.job import Job

# Device files of every kind of accelerator that torch calls cuda: NVIDIA, Jetson, AMD, WSL.
_ACCELERATORS = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
_MEASURING = ("profile", "study", "first_steps", "budget", "anatomy")


def check(job: Job) -> None:
    """Refuse what is known to be wrong without a model and without torch.

    Raises:
        InputError: results or a model folder are not there.
        ConfigError: a target device that no table knows.
        DeviceError: a CUDA device on a machine that has none.
    """
    for error in _wrong(job):
        raise error


def _wrong(job: Job) -> Iterator[VlmbenchError]:
    settings = job.settings
    for name in ("phase2_results", "phase3_results"):
        given = getattr(settings, name)
        if given and not Path(given).expanduser().exists():
            yield InputError(
                f"'{name}': no results at '{given}': there is no such file or directory.\n"
                "Give a run directory, a multirun directory, or a phase file (…/phase2_scaling.json)."
            )
    if settings.task not in _MEASURING or settings.runtime.engine == "endpoint":
        return
    yield from environment.wrong()
    yield from _load_axes(job)
    if sys.flags.optimize > 1:
        yield InputError(
            "Python runs without docstrings (-OO, PYTHONOPTIMIZE=2), and transformers builds no model without its own\n"
            "start it without that"
        )
    if settings.runtime.engine == "vllm" and not settings.dry_run:
        from vlmbench.engines.vllm.start import check_installed

        try:
            check_installed()
        except ConfigError as error:
            yield error
    model = job.config.get("model") or {}
    place = with_environment(model.get("path"), name="path", secrets=True)
    if model.get("weights") == "pretrained" and place and not Path(place).expanduser().exists():
        yield ModelError(f"model folder '{place}' does not exist; give a folder with config.json and *.safetensors")
    if settings.dry_run:
        if settings.target_device is not None and (words := unknown_device(settings.target_device)):
            yield ConfigError(words)
    elif re.fullmatch(r"cuda(:\d+)?", settings.runtime.device) and _no_accelerator():
        yield DeviceError(
            f"device '{settings.runtime.device}' is not here: 0 CUDA device(s) visible; "
            "use runtime.device=cpu or runtime.device=auto"
        )
    yield from _nvtx(job)


def _load_axes(job: Job) -> Iterator[ConfigError]:
    """A sweep of a load that there is none of would measure the same requests under several names."""
    axes = axis_names((job.config.get("sweep") or {}).get("axes") or {})
    if not any(axis.startswith(LOAD_PREFIX) for axis in axes):
        return
    from vlmbench.session.serving import check_load_axes

    try:
        check_load_axes(axes, job.settings.load.name)
    except ConfigError as error:
        yield error


def _nvtx(job: Job) -> Iterator[ConfigError]:
    device = job.settings.runtime.device
    timeline = (job.config.get("probe") or {}).get("timeline") or {}
    if timeline.get("nvtx") and not job.settings.dry_run:
        from vlmbench.probes.nvtx import check_nvtx

        try:
            check_nvtx("cpu" if device == "cpu" or (device == "auto" and _no_accelerator()) else "cuda")
        except ConfigError as error:
            yield error


def doubts(job: Job) -> list[str]:
    """What is allowed and probably not meant."""
    settings = job.settings
    chosen = list(settings.probe)
    if settings.task not in ("profile", "study") or settings.runtime.engine == "endpoint" or "timeline" in chosen:
        return []
    listed = ",".join(["timeline", *chosen])
    return [
        f"no stages will be measured: the probes are {', '.join(chosen) or 'none'}, without timeline; "
        f"probe= replaces the whole list, probe=[{listed}] keeps the stages",
    ]


def _no_accelerator(devices: Path = Path("/dev")) -> bool:
    """Whether this machine surely has no accelerator; elsewhere than on Linux only torch can tell."""
    return sys.platform == "linux" and not any(any(devices.glob(name)) for name in _ACCELERATORS)
