"""Data sets of other packages: what they do wrong is said of them, and a sample that cannot be made costs its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from vlmbench.api.requests import samples_of
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
        (
            lambda: [sample("a"), sample("b"), sample("a")],
            "'sample_id' must name one sample .got 'a' for 0 and 2.\nGive each sample an id of its own",
        ),
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


class Made:
    """Samples that are made when asked for: no list that could be looked through before."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return sample(self.names[index])


@pytest.mark.parametrize("of_user", [False, True])
def test_a_second_sample_of_an_id_costs_itself_alone_and_both_places_are_named(of_user: bool) -> None:
    made = Made("a", "b", "a")
    samples = samples_of(made) if of_user else opened(Theirs(give=lambda: made))
    assert [samples[index].sample_id for index in (2, 1, 2, -1)] == ["a", "b", "a", "a"], "the first that comes has it"
    name = "Made" if of_user else "theirs"
    told = f"sample 0 of data set '{name}' has the id of sample 2, 'a'\nGive each sample an id of its own"
    with pytest.raises(SampleError, match=told):
        samples[0]
    assert len(samples) == 3
    assert samples_of(samples) is samples


def test_a_secret_in_an_id_is_not_told() -> None:
    signed = f"https://host/a.png?X-Amz-Signature={'5f0c' * 16}"
    samples = opened(Theirs(give=lambda: Made(signed, signed)))
    assert samples[0].sample_id == signed
    with pytest.raises(SampleError, match=r"has the id of sample 0, 'https://host/a\.png") as caught:
        samples[1]
    with pytest.raises(InputError, match="'sample_id' must name one sample") as refused:
        opened(Theirs(give=lambda: [sample(signed), sample(signed)]))
    assert "5f0c" not in f"{caught.value}{refused.value}"


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
