"""A data set is opened here, and what it gives is held against the protocol: it may be of another package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlmbench.data.protocol import Dataset, Samples
from vlmbench.errors import InputError, SampleError, VlmbenchError
from vlmbench.request import Sample


def opened(dataset: Dataset) -> Samples:
    """Open a data set.

    Returns:
        Its samples; one that cannot be made raises a :class:`SampleError`, which costs its row only.

    Raises:
        InputError: it cannot be opened, holds no sample, gives something else than samples, or two that share an id.
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
        refuse_doubles([one for one in given if isinstance(one, Sample)])
    return _Opened(name=name, given=given)


def refuse_doubles(samples: Sequence[Sample]) -> None:
    """Refuse samples that share an id: a run that is continued would take the second for the first, and leave it out.

    Raises:
        InputError: two share one.
    """
    doubles = [name for name, times in Counter(sample.sample_id for sample in samples).items() if times > 1]
    if doubles:
        raise InputError(f"'sample_id' must name one sample (got '{doubles[0]}' for several)")


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """Samples whose every failure is one of the sample."""

    name: str
    given: Samples

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
        return sample
