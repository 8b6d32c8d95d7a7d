"""What the runner needs of a data set. Standard library only."""

from __future__ import annotations

from typing import Protocol

from vlmbench.request import Sample


class Samples(Protocol):
    """An opened data set: indexed, its images still unread."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Dataset(Protocol):
    """A data set's configuration: a frozen keyword-only dataclass that does no I/O when constructed.

    Its field ``num_samples`` (at most so many) is set by experiments.
    """

    @property
    def name(self) -> str:
        """What records and figures call it."""

    def open(self) -> Samples:
        """Index it.

        Raises:
            InputError: a file is missing (the message says which path was looked for and how to get it), or nothing
                is in it.
        """
