"""Random numbers of this process: drawn from a seed of our own, the caller's left where they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """Seed torch's generators while the block runs, then give Python's, numpy's and torch's back as they were.

    Args:
        seed: of the host's generator, and of those of the devices.
        devices: on which the block draws; where none is a GPU, CUDA is not even initialised.
    """
    import numpy as np
    import torch

    kinds = {device.type for device in devices}
    python, arrays, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if "cuda" in kinds else []
    mps = torch.mps.get_rng_state() if "mps" in kinds else None
    torch.default_generator.manual_seed(seed)
    if gpus:
        torch.cuda.manual_seed_all(seed)
    if mps is not None:
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(host)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)
