"""Data sets of other packages: what they do wrong is said of them, and a sample that cannot be made costs its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from vlmbench.data.opening import opened, refuse_doubles
from vlmbench.errors import InputError, SampleError
from vlmbench.request import ImageSource, Sample


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """A data set of another package, which gives whatever it is told to."""

    give: Callable[[], Any]
    name: str = "theirs"

    def open(self) -> Any:
        return self.give()


class NoLength(list[Sample]):
    """Samples whose number cannot be told."""

    def __len__(self) -> int:
        raise KeyError("index")


def sample(name: Any = "a", question: Any = "What?") -> Sample:
    return Sample(sample_id=name, question=question, images=())


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda: 1 / 0, "data set 'theirs' cannot be opened: ZeroDivisionError"),
        (NoLength, "data set 'theirs' cannot be opened: KeyError"),
        (lambda: None, r"open\(\) must return samples with a length and an index.*got NoneType"),
        (lambda: (sample() for _ in range(3)), "got generator"),
        (list, "data set 'theirs' holds no sample"),
        (lambda: [sample("a"), sample("b"), sample("a")], "'sample_id' must name one sample .got 'a' for several"),
    ],
)
def test_what_is_no_data_set_is_refused_by_name(give: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(Theirs(give=give))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ("text", "sample 1 of data set 'theirs' is no Sample"),
        (sample(3), "is no Sample with a text as 'sample_id'"),
        (sample("b", 5), "must have a text as 'question' .got 5"),
    ],
)
def test_a_sample_that_is_none_costs_itself_alone(one: Any, message: str) -> None:
    samples = opened(Theirs(give=lambda: [sample("a"), one]))
    assert samples[0].sample_id == "a"
    with pytest.raises(SampleError, match=message):
        samples[1]


def test_a_sample_that_cannot_be_made_costs_itself_alone() -> None:
    class Lazy(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            raise KeyError("column")

    with pytest.raises(SampleError, match="sample 0 of data set 'theirs' cannot be made: KeyError: 'column'"):
        opened(Theirs(give=lambda: Lazy([sample()])))[0]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: 1 / 0, "image 'x' cannot be read: ZeroDivisionError: division by zero"),
        (lambda: "text", "image 'x' must be read as bytes .got str"),
    ],
)
def test_an_image_that_cannot_be_read_costs_its_sample_alone(read: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        ImageSource(name="x", read=read).encoded()


def test_samples_of_unlike_names_pass() -> None:
    refuse_doubles([sample("a"), sample("b")])
