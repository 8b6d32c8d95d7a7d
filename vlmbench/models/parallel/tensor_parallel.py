"""``tp_plan``: every layer of a model split over the processes of ``torchrun``, by transformers' own plan.

Who tells the processes what to do is in :mod:`vlmbench.models.parallel.team`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmbench.errors import ConfigError, DeviceError, first_line
from vlmbench.models.parallel.team import LOADING, Team

if TYPE_CHECKING:
    import torch


_TORCHRUN = "torchrun --nproc-per-node N -m vlmbench …"


def _not_torchrun(error: Exception) -> str:
    return (
        f"by RANK and WORLD_SIZE this is one of torchrun's processes; it cannot join the others: {first_line(error)}\n"
        f"start it by {_TORCHRUN}, or alone: unset RANK WORLD_SIZE"
    )


_team: Team | None = None


def current() -> Team | None:
    """The processes that this one belongs to; None when it stands alone."""
    return _team


@contextmanager
def joined() -> Iterator[Team]:
    """Find the other processes of torchrun; on leaving, the first process ends the others.

    Raises:
        DeviceError: more processes on this host than GPUs, or the others cannot be found.
    """
    import torch

    global _team  # noqa: PLW0603 - a process belongs to one torchrun, as torch.distributed has one default group
    environment = os.environ
    try:
        local_rank = int(environment.get("LOCAL_RANK", environment["RANK"]))
        here = int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]))
    except ValueError as error:
        raise DeviceError(_not_torchrun(error)) from error
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and here > gpus:
        raise DeviceError(
            f"torchrun started {here} processes here and {gpus} GPU(s) are visible: use --nproc-per-node {gpus} at most"
        )
    if gpus:
        torch.cuda.set_device(local_rank)
    distributed: Any = torch.distributed
    try:
        store, rank, size = next(distributed.rendezvous("env://"))
    except (ValueError, RuntimeError) as error:  # a variable of torchrun's is missing or senseless; nobody came
        raise DeviceError(_not_torchrun(error)) from error
    _team = Team(rank=rank, size=size, store=distributed.PrefixStore("vlmbench", store))
    if _team.leads:
        _team.lead()
    try:
        yield _team
    finally:
        if _team.leads:
            _team.dismiss()
        else:
            _team.part()
        if distributed.is_initialized() and _team.lost is None:
            distributed.destroy_process_group()
        _team = None


def team_for(tp_plan: str | None, *, device_map: str | None, device: str, compile: bool) -> Team | None:
    """The processes that share a model; None where one process has it alone.

    Raises:
        ConfigError: settings that contradict each other or the way this process was started.
    """
    import torch

    if tp_plan is None:
        if _team is not None:
            raise ConfigError(
                f"torchrun started {_team.size} processes, and nothing says that they share the model: "
                "set runtime.tp_plan=auto, or start without torchrun"
            )
        return None
    if tp_plan != "auto":
        raise ConfigError(f"'runtime.tp_plan' must be auto or null (got {tp_plan!r})")
    if device_map is not None:
        raise ConfigError(
            f"'runtime.tp_plan' and 'runtime.device_map' exclude each other (got {tp_plan}, {device_map})"
        )
    if compile:
        raise ConfigError("'runtime.tp_plan' and 'runtime.compile' exclude each other (got auto, true)")
    if _team is None:
        raise ConfigError(f"'runtime.tp_plan=auto' needs two or more processes of torchrun: {_TORCHRUN}")
    accelerator = torch.accelerator.current_accelerator()
    kind = "cpu" if accelerator is None else accelerator.type
    if device not in ("auto", kind):
        raise ConfigError(
            f"'runtime.device' must be auto or {kind} with runtime.tp_plan: each process takes its own (got {device!r})"
        )
    return _team


def connect(team: Team, device: torch.device) -> None:
    """Make the default process group, once: NCCL between GPUs, gloo between CPUs."""
    import torch

    distributed: Any = torch.distributed
    if distributed.is_initialized():
        return
    on_gpu = device.type == "cuda"
    distributed.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        store=distributed.PrefixStore("group", team.store),
        rank=team.rank,
        world_size=team.size,
        timeout=LOADING,  # reading a checkpoint takes one process much longer than another
        device_id=device if on_gpu else None,
    )


def equalise(module: Any) -> None:
    """Give every process the first one's copy of what is not split: each may have drawn other random numbers."""
    import torch
    from torch import distributed

    home = next(module.parameters()).device.type
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if not is_split(tensor) and tensor.device.type == home:
                whole = tensor.data.contiguous()  # collectives take nothing else
                distributed.broadcast(whole, src=0)
                tensor.data.copy_(whole)


def is_split(tensor: torch.Tensor) -> bool:
    """Whether each process holds a part of this tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def split_share(module: Any) -> float:
    """The share of a model's parameters that is split; the rest lies on every GPU in full, 0–1."""
    sizes: list[tuple[int, bool]] = [(parameter.numel(), is_split(parameter)) for parameter in module.parameters()]
    return sum(size for size, split in sizes if split) / max(1, sum(size for size, _ in sizes))
