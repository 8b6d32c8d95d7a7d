"""A data set is opened here, and what it gives is held against the protocol: it may be of another package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmbench.data.protocol import Dataset, Samples
from vlmbench.errors import InputError, SampleError, VlmbenchError
from vlmbench.hiding import hidden_name
from vlmbench.request import Sample


def opened(dataset: Dataset) -> Samples:
    """Open a data set.

    Returns:
        Its samples; one that cannot be made, or has the id of another, raises a :class:`SampleError`, which costs its
        row only.

    Raises:
        InputError: it cannot be opened, holds no sample, gives something else than samples, or a list in which two
            share an id.
    """
    name = str(getattr(dataset, "name", type(dataset).__name__))
    try:
        given: Any = dataset.open()
        listed = hasattr(given, "__len__") and hasattr(given, "__getitem__")
        number = len(given) if listed else 0
    except (VlmbenchError, MemoryError):
        raise
    except Exception as error:  # code of another package: anything may come out of it
        raise InputError(f"data set '{name}' cannot be opened: {type(error).__name__}: {error}") from error
    if not listed:
        raise InputError(
            f"data set '{name}': open() must return samples with a length and an index, a list for one "
            f"(got {type(given).__name__})"
        )
    if not number:
        raise InputError(f"data set '{name}' holds no sample; look at its settings (dataset.…)")
    if isinstance(given, list | tuple):
        refuse_doubles(given)
    return _Opened(name=name, given=given)


def watched(samples: Samples, name: str) -> Samples:
    """Hold samples that others opened against the protocol, each as it comes; ``name`` is what errors call them."""
    return samples if isinstance(samples, _Opened) else _Opened(name=name, given=samples)


def refuse_doubles(samples: Sequence[Any]) -> None:
    """Refuse samples that share an id: a run would take the second for the first, and leave it out.

    Args:
        samples: at hand; what is none is left to whoever asks for it.

    Raises:
        InputError: two share one.
    """
    first: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if not isinstance(sample, Sample) or not isinstance(sample.sample_id, str):
            continue
        if (other := first.setdefault(sample.sample_id, index)) != index:
            name = hidden_name(sample.sample_id)
            raise InputError(f"'sample_id' must name one sample (got '{name}' for {other} and {index})\n{_OWN_ID}")


_OWN_ID = "Give each sample an id of its own: rows are told apart by it."


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """Samples whose every failure is one of the sample; of those that share an id, the first asked for has it."""

    name: str
    given: Samples
    _first: dict[str, int] = field(default_factory=dict, init=False)  # id to the index

    def __len__(self) -> int:
        return len(self.given)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        try:
            sample = self.given[index]
        except (VlmbenchError, MemoryError, IndexError):
            raise
        except Exception as error:
            raise SampleError(
                f"sample {index} of data set '{self.name}' cannot be made: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(sample, Sample) or not isinstance(sample.sample_id, str):
            raise SampleError(f"sample {index} of data set '{self.name}' is no Sample with a text as 'sample_id'")
        if not isinstance(sample.question, str):
            raise SampleError(
                f"sample {index} of data set '{self.name}' must have a text as 'question' (got {sample.question!r})"
            )
        place = index % len(self)
        if (other := self._first.setdefault(sample.sample_id, place)) != place:
            raise SampleError(
                f"sample {place} of data set '{self.name}' has the id of sample {other}, "
                f"'{hidden_name(sample.sample_id)}'\n{_OWN_ID}"
            )
        return sample
