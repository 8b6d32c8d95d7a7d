"""The stages of a model checked by one real run, and found by one where the rules find none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vlmbench
from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy import find
from vlmbench.models.anatomy.verify import verify
from vlmbench.models.transformers_model import TransformersModel

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations are not this package's


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return vlmbench.load("tiny", device="cpu")


@pytest.fixture
def model(tiny: tuple[Any, Any]) -> TransformersModel:
    return TransformersModel.of(*tiny)


def test_a_run_confirms_what_the_rules_find(model: TransformersModel) -> None:
    found = verify(model, model.anatomy)
    assert found.agrees is True
    assert found.differences == ()
    assert found.seen is not None
    assert found.seen.how["language_model"].endswith("seen running")
    assert not any(module._forward_pre_hooks for module in model.module.modules())


def test_a_run_shows_what_the_rules_got_wrong(model: TransformersModel) -> None:
    (projector,) = model.anatomy.projector
    found = verify(model, replace(model.anatomy, projector=()))
    assert found.agrees is False
    assert found.differences == (f"projector: the rules say nothing, a run shows {projector}",)


def test_where_the_rules_fail_a_run_finds_the_stages(model: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(find.find_anatomy(model.module).stages())
    monkeypatch.setattr(find, "find_anatomy", _nothing)
    found = model.anatomy
    assert dict(found.stages()) == known
    assert set(found.how.values()) == {"watching"}


def test_an_override_that_does_not_fit_is_not_run_away_from(tiny: tuple[Any, Any]) -> None:
    model = TransformersModel.of(*tiny, anatomy={"projector": ["no.such.module"]})
    with pytest.raises(AnatomyError, match=r"no\.such\.module"):
        _ = model.anatomy


def test_neither_rules_nor_a_run(model: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = model.anatomy
    monkeypatch.setattr(type(model.module), "generate", _refuse)
    found = verify(model, anatomy)
    assert found.agrees is None
    assert found.notes == ("no run could be made: RuntimeError: not today",)
    monkeypatch.setattr(find, "find_anatomy", _nothing)
    with pytest.raises(AnatomyError, match=r"no rule fits\nwatching one run does not tell either .*not today"):
        _ = TransformersModel.of(model.module, model.processor).anatomy


def _nothing(*_: Any) -> Any:
    raise AnatomyError("no rule fits")


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("not today")
