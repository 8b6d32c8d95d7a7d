"""Which texts hold a secret: known answers of every kind, and ordinary texts that stay as they are."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.secrets.forms import BESIDE, LOOKS, ORDINARY
from vlmbench import hiding
from vlmbench.hiding import forms, hide_secrets, without_secret_texts, without_secrets
from vlmbench.records.redact import shareable

ROOT = Path(__file__).parents[2]
AROUND = [
    "{}",
    "note {} end",
    "a={}",
    "'{}'",
    '"{}"',
    "https://x.org/?q={}&b=1",
    "[{}, 1]",
    "x\\n{}\\n",
    "%20{}",
    "got: {}.",
]
WAYS: list[Callable[[str], str]] = [
    hide_secrets, lambda t: hide_secrets(repr(KeyError(t))), lambda t: hide_secrets(json.dumps([repr([t])])),
    lambda t: str(shareable(t)), lambda t: json.dumps(without_secrets({"x": [t]})),
    lambda t: json.dumps(without_secret_texts([t])),
]  # fmt: skip


def pieces(secret: str) -> list[str]:
    """What may not be left of it: each line, and each part of 12 characters or more."""
    return [line for line in secret.splitlines() if len(line) > 20 and "-----" not in line] or [secret]


@pytest.mark.parametrize("around", AROUND)
def test_nothing_is_left_of_what_looks_like_a_secret(around: str) -> None:
    left = [
        kind
        for kind, secret in LOOKS.items()
        for way in WAYS
        for p in pieces(secret)
        if p in way(around.format(secret))
    ]
    assert not left


@pytest.mark.parametrize("around", ["{}", "see {}", "x: [{}]\nmore", "'x'; {}", "x\\n{}\\ny"])
def test_nothing_is_left_of_what_a_name_stands_beside(around: str) -> None:
    left = [
        kind
        for kind, (text, secret) in BESIDE.items()
        for way in WAYS
        if secret in way(around.format(text.format(secret)))
    ]
    assert not left


def test_there_are_many_forms() -> None:
    assert len(LOOKS) + len(BESIDE) >= 120


def test_ordinary_texts_stay() -> None:
    assert [text for text in ORDINARY if hide_secrets(text) != text] == []


def test_shipped_configurations_documents_and_code_stay() -> None:
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        loaded = OmegaConf.to_container(OmegaConf.load(file))
        assert without_secrets(loaded) == loaded, file
    for file in [*sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        changed = [line for line in text.splitlines() if hide_secrets(line) != line]
        assert changed == [], file


@given(st.text(max_size=80))
def test_twice_changes_nothing(text: str) -> None:
    once = hide_secrets(text)
    assert hide_secrets(once) == once


@given(
    st.lists(
        st.sampled_from([*LOOKS.values(), *(t.format(s) for t, s in BESIDE.values()), " ", "=", "'", '"', "@", "://"]),
        max_size=5,
    )
)
def test_twice_changes_nothing_where_there_are_secrets(parts: list[str]) -> None:
    once = hide_secrets("".join(parts))
    assert hide_secrets(once) == once


@pytest.mark.parametrize(
    "value", ["plainword77", "with space 1", "it's+a/b==", 'quo"te\\9', "zwei\nZeilen-und-mehr-1", "ümlaut-9"]
)
def test_what_a_secrets_variable_holds_is_hidden_as_it_may_be_written(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", value)
    for written in (value, json.dumps(value), repr(value), urllib.parse.quote(value), urllib.parse.quote_plus(value)):
        assert hide_secrets(f"it is {written}, yes").replace('"', "'") in ("it is ***, yes", "it is '***', yes")


def test_names_of_variables_decide() -> None:
    for name in ("MAX_TOKENS", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYBOARD", "PASSES"):
        assert without_secrets({name: "abcdef99"}) == {name: "abcdef99"}


UNITS = [
    "a+", "'/a", "a=", "x://", "eyJA.", "Bearer ", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "token=", "--token ", "a",
    "password: ", "://a:", "sk-a-", "sk-A", "'", "\\n", "%3D", "key=A1", "cookie: ", "1//", "SG.a.", "0:AA", "@", "{[(",
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(UNITS), min_size=1, max_size=3).map("".join))
def test_time_grows_as_the_text_does(unit: str) -> None:
    """Sixteen times the text takes about sixteen times as long; the square of it would be 256 times."""

    def cost(length: int) -> int:
        text = (unit * length)[:length]
        best = []
        for _ in range(2):
            began = time.thread_time_ns()
            hide_secrets(text)
            best.append(time.thread_time_ns() - began)
        return min(best)

    small, large = cost(4_000), cost(64_000)
    assert large < 100 * small + 2_000_000, unit


def test_no_expression_repeats_without_bound_before_what_may_fail() -> None:
    """Structure instead of time: what repeats more than 20,000 times ends its expression, or what follows is optional."""
    searched = [forms.FORM, forms.LONG_WORD, *(pattern for _, pattern in forms.BEHIND), hiding._NAMED, hiding._OPTION]
    for pattern in [*searched, hiding._VALUE, hiding._HEADER, *hiding._IN_QUOTES.values()]:
        parsed = re._parser.parse(pattern.pattern, pattern.flags)  # type: ignore[attr-defined]
        assert not _unbounded_inside(parsed), pattern.pattern


def _unbounded_inside(items: Any) -> bool:
    """Whether an unbounded repetition stands before something that must follow."""
    parsed = [(str(kind), argument) for kind, argument in items]
    for place, (kind, argument) in enumerate(parsed):
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            _, high, inner = argument
            needed = [one for one in parsed[place + 1 :] if not (one[0] == "MAX_REPEAT" and one[1][0] == 0)]
            if (int(high) > 20_000 and needed) or _unbounded_inside(inner):
                return True
        inside = {"SUBPATTERN": lambda: [argument[3]], "BRANCH": lambda: argument[1]}.get(kind, list)()  # noqa: B023
        if any(_unbounded_inside(one) for one in inside):
            return True
    return False
