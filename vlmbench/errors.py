"""The exception tree: everything vlmbench raises on purpose.

::

    VlmbenchError
    ├── ConfigError            exit 2   the configuration is wrong: unknown key, wrong type, out of range
    ├── InputError             exit 2   an input file, folder or results file is missing, empty or unreadable
    │   └── DirectoryConflictError  exit 2   the run directory belongs to another configuration or another process
    ├── ModelError             exit 2   the model cannot be found, built or loaded
    │   ├── AnatomyError       exit 2   its stages cannot be told apart
    │   └── UnfitModelError    exit 2   the engine cannot run it: every request would fail alike
    ├── EndpointError          exit 2   the server cannot be reached, refuses key, model or images, or does not stream
    ├── DeviceError            exit 2   the device is missing, too small or busy
    │   └── OutOfStepError     exit 1   one of the processes that share a model failed: the others cannot go on
    ├── UnreachablePointError       –        a sweep point the model cannot reach (its row becomes ``skipped``)
    ├── SampleError            –        one sample cannot be used (its row becomes ``error``)
    └── MeasurementError       exit 1   the measurement itself broke
        ├── UnrestoredModelError  exit 1   a method left the model changed: later runs would be measured with it
        └── StoreError         exit 1   a row cannot be kept: the disk is full or gone
            └── RowsLostError  exit 1   the records file was removed, replaced or moved under the run

A message has one or two lines: what was given, what is allowed, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: all points ok; some failed or none could be measured; refused before anything was measured; to be
continued by the same command."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class VlmbenchError(Exception):
    """Base of all errors that vlmbench raises on purpose; ``exit_status`` is what the command line returns."""

    exit_status: int = 2


class ConfigError(VlmbenchError):
    """One or more things in the configuration are wrong; the message lists them all."""


class InputError(VlmbenchError):
    """An input file, folder or results file is missing, empty or unreadable."""


class DirectoryConflictError(InputError):
    """The run directory belongs to another configuration, or another process writes to it now."""


class ModelError(VlmbenchError):
    """The model cannot be found, built or loaded."""


class AnatomyError(ModelError):
    """The stages of a model cannot be told apart; the message lists its module tree."""


class UnfitModelError(ModelError):
    """The engine cannot run the model, which the first request has shown; every other would fail alike."""


class EndpointError(VlmbenchError):
    """The server cannot be reached, refuses the key or the model, takes no images, or does not stream."""


class DeviceError(VlmbenchError):
    """The device is missing, too small for the model, or busy."""


class OutOfStepError(DeviceError):
    """One of the processes that share a model failed inside a run; the others cannot go on with the next."""

    exit_status = 1


class UnreachablePointError(VlmbenchError):
    """A sweep point that this model cannot reach; its row gets the status ``skipped`` with this message."""


class SampleError(VlmbenchError):
    """One sample cannot be used (a corrupt image, say); its row gets the status ``error`` with this message."""


class MeasurementError(VlmbenchError):
    """The measurement itself broke: marks missing, counts that contradict each other."""

    exit_status = 1


class UnrestoredModelError(MeasurementError):
    """A method left the model changed: every later run would be measured with it; rows stored before are sound."""


class StoreError(MeasurementError):
    """A row cannot be kept: the disk is full, gone or not writable; rows stored before are intact."""


class RowsLostError(StoreError):
    """The records file is not where it was opened; the message says where its rows are.

    Args:
        moved_to: the directory that holds the rows now; None where that is not known.
    """

    def __init__(self, message: str, *, moved_to: Path | None = None) -> None:
        super().__init__(message)
        self.moved_to = moved_to
