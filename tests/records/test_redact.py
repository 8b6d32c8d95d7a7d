"""What may be published: paths and secrets go, everything that only looks like a path stays as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.records.redact import shareable, shareable_command

WORD = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,8}[A-Za-z0-9]", fullmatch=True)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shareable(str(tmp_path / "a" / "b c")) == "a/b c"
    assert shareable("a/b") == "a/b"
    assert shareable("https://host/a/b") == "https://host/a/b"
    hidden = shareable("/home/alice/my data/x")
    assert hidden.startswith("…/x#")
    assert shareable(Path("/home/alice/my data/x")) == hidden
    assert shareable("see /home/alice/q, or ~/z and ~bob/y").count("#") == 3
    assert "alice" not in shareable('File "/home/alice/a.py", line 3\n  more')
    assert shareable(hidden) == hidden


def test_secrets() -> None:
    config = {"token": "abc", "x": {"api_key": "k", "hub_token": None, "max_new_tokens": 3, "image_token": "<i>"}}
    assert shareable(config) == {
        "token": "***",
        "x": {"api_key": "***", "hub_token": None, "max_new_tokens": 3, "image_token": "<i>"},
    }
    assert shareable_command(["-m", "a.password=x=y", "note=hf_ABCDEFGHIJKLMNOPQRST"]) == [
        "-m", "a.password=***", "note=***",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "</s>", "</img>", "<s></s>", "[/INST]", "<<SYS>> <</SYS>> [/INST]", "<|/box|>", "<a></a></b>", "3/4", "~3/4",
        "~3 %", "2024/01/02", "tokens/s", "5 tokens /s", "and/or", "org/model", "https://host/a/b?next=/c/d",
        "s3://bucket/alice/x", "hf://org/model", "$HOME/a/b", "${root}/a/b", "**/x/y", "...", "/", "~", "a // b", "½/⅓",
        "{% for m in messages %}{{ m }}</s>{% endfor %}", "…/x#1a2b3c4d", "image/png", "batch/1,vision/2",
    ],
)  # fmt: skip
def test_what_is_no_path_stays(text: str) -> None:
    assert shareable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "/home/alice", "~alice", "~alice/x", "see /home/alice/x.", "at /home/alice/x: no such file", "</home/alice/x>",
        "PATH=/usr/bin:/home/alice/bin", "roots=[/data/alice/a,/scratch/alice/b]", "file:///home/alice/x/y",
        "file://host/home/alice/x", "cannot open '/home/alice/my data/x'", "x:/Users/alice", "//srv/alice/x",
        "cannot open `/home/alice`", "/home/alice/a,/home/alice/b", "--root /home/alice/", "(/home/alice/q)",
    ],
)  # fmt: skip
def test_what_is_a_path_goes(text: str) -> None:
    hidden = shareable(text)
    assert "alice" not in hidden
    assert "#" in hidden
    assert shareable(hidden) == hidden


@given(WORD, st.sampled_from(["<{}>", "</{}>", "<|{}|>", "[{}]", "[/{}]", "<|/{}|>", "<</{}>>", "{{/{}}}"]), WORD)
def test_special_tokens_stay(word: str, form: str, around: str) -> None:
    token = form.format(word)
    for text in (token, token + token, f"{around} {token} {around}", f'eos_token: "{token}"'):
        assert shareable(text) == text


@given(st.lists(st.integers(0, 99_999), min_size=2, max_size=4), WORD)
def test_ratios_and_dates_stay(numbers: list[int], word: str) -> None:
    ratio = "/".join(map(str, numbers))
    for text in (ratio, f"{word} {ratio}", f"~{ratio}", f"({ratio})", f"{word}={ratio}"):
        assert shareable(text) == text


@given(st.sampled_from(["http", "https", "s3", "hf"]), st.lists(WORD, min_size=1, max_size=4), WORD)
def test_web_addresses_stay(scheme: str, parts: list[str], word: str) -> None:
    address = f"{scheme}://{'/'.join(parts)}"
    for text in (address, f"{word} {address} {word}", f"'{address}'", f"{word}={address}"):
        assert shareable(text) == text


@given(
    st.sampled_from(["/home/", "/Users/", "/scratch/", "~", "/mnt/x/"]),
    st.lists(WORD, min_size=1, max_size=4),
    st.sampled_from(
        ["{}", "'{}'", '"{}"', "see {}, then", "a={} b", "[{}]", "({})", "<{}>", "x:{}:y", "{}: no", "{}\n"]
    ),
)
def test_paths_below_a_users_folder_go(root: str, parts: list[str], form: str) -> None:
    path = f"{root}zacharias/{'/'.join(parts)}"
    hidden = shareable(form.format(path))
    assert "zacharias" not in hidden
    assert path not in hidden
    assert re.search(r"#[0-9a-f]{8}", hidden)
    assert shareable(hidden) == hidden


@given(st.text(max_size=60))
def test_any_text_is_gone_through_and_twice_changes_nothing(text: str) -> None:
    once = shareable(text)
    assert shareable(once) == once
