"""What the command line says, arranged as Hydra takes it: the meaning stays, and Hydra composes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from vlmbench.cli import validate
from vlmbench.cli.argument_order import arranged
from vlmbench.errors import ConfigError
from vlmbench.sweep import spaced

Compose = Callable[..., DictConfig]
SETTINGS = st.sampled_from(["experiment=smoke", "seed=1,2", "output_dir=x", "~probe.energy", "+model.anatomy.head=[a]"])
OPTIONS = st.sampled_from([["-m"], ["--multirun"], ["--cfg", "job"], ["-c", "all"], ["--resolve"], ["--info", "config"],
                           ["-p", "model"], ["--cfg=job"]])  # fmt: skip


@given(st.lists(st.one_of(SETTINGS.map(lambda s: [s]), OPTIONS), max_size=6))
def test_settings_come_first_and_options_keep_their_values(words: list[list[str]]) -> None:
    found = arranged([word for group in words for word in group])
    settings = [group for group in words if not group[0].startswith("-")]
    options = [group for group in words if group[0].startswith("-")]
    assert found == [word for group in [*settings, *options] for word in group]


def test_an_option_without_its_value_takes_no_setting() -> None:
    assert arranged(["--info", "experiment=smoke"]) == ["experiment=smoke", "--info"]
    assert arranged(["a=1", "--", "-m", "b=2"]) == ["a=1", "--", "-m", "b=2"]


def axes(compose: Compose, *words: str) -> dict[str, list[int]]:
    composed = compose(*arranged(words))
    validate.validate(composed)
    return {axis.name: list(axis.values) for axis in validate.build(composed.sweep).parsed()}


@pytest.mark.parametrize(
    ("given_range", "spec"),
    [
        ("{start:64,stop:2048,num:4,spacing:log}", {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
        ("{start: 64, stop: 2048, num: 4}", {"start": 64, "stop": 2048, "num": 4}),
        ("{start:64,stop:256,step:64}", {"start": 64, "stop": 256, "step": 64}),
        ("log(64, 2048, 4)", {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
        ('"log(64, 2048, 4)"', {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
    ],
)
def test_a_range_takes_the_place_of_a_list(compose: Compose, given_range: str, spec: dict[str, int | str]) -> None:
    for plus in ("", "++"):
        found = axes(compose, "experiment=phase2", f"{plus}sweep.axes.vision_tokens={given_range}")
        assert found == {"vision_tokens": spaced(spec)}


def test_axes_as_a_mapping_replace_those_of_the_sweep(compose: Compose) -> None:
    assert axes(compose, "experiment=phase2", "sweep.axes={resolution:[56,112,224]}") == {"resolution": [56, 112, 224]}
    assert axes(compose, "sweep.axes={batch_size:[1,2],images:[1]}") == {"batch_size": [1, 2], "images": [1]}
    assert axes(compose, "experiment=phase2", "sweep.axes={resolution:[56]}", "+sweep.axes.images=[1,2]") == {
        "resolution": [56],
        "images": [1, 2],
    }
    added = axes(compose, "sweep=resolution", "+sweep.axes={batch_size:[1,2]}")
    assert list(added) == ["resolution", "batch_size"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.axes={}", "a sweep without points.*\n.*sweep=none"),
        ("sweep.axes.vision_tokens={}", "axis 'vision_tokens': a range needs 'start', 'stop'"),
        ("sweep.axes.vision_tokens={start:1,stop:9,num:3,spacing:cubic}", "'spacing' must be linear or log"),
        ("sweep.axes.vision_tokens={start:1,stop:9,number:3}", "got also"),
    ],
)
def test_axes_that_make_no_points_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arranged([word])
