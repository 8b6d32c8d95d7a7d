"""What may be published: paths and secrets go, everything that only looks like a path stays as it was."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.records.redact import shareable, shareable_command, without_secrets

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


SECRETS = [
    "hf_" + "A1b2" * 6, "api_org_" + "A1b2" * 6, "ghp_" + "A1b2" * 6, "gho_" + "A1b2" * 6, "ghs_" + "A1b2" * 6,
    "github_pat_" + "A1b2_" * 6, "glpat-" + "A1b2" * 6, "AKIA" + "A1B2" * 4, "ASIA" + "A1B2" * 4, "nvapi-" + "A1b2" * 6,
    "sk-" + "A1b2" * 6, "sk-proj-" + "A1b2" * 6, "sk_live_" + "A1b2" * 4, "pk_test_" + "A1b2" * 4, "npm_" + "A1b2" * 6,
    "pypi-" + "A1b2" * 6, "dckr_pat_" + "A1b2" * 6, "xoxb-" + "A1b2-" * 4, "AIza" + "A1b2" * 9, "ya29." + "A1b2" * 6,
    "eyJ" + "A1b2" * 4 + "." + "A1b2" * 4 + "." + "A1b2" * 4, "dop_v1_" + "a1b2" * 10, "tgp_v1_" + "A1b2" * 6,
    "SG." + "A1b2" * 5 + "." + "A1b2" * 5, "r8_" + "A1b2" * 6, "gsk_" + "A1b2" * 6, "xai-" + "A1b2" * 6,
]  # fmt: skip
NAMED = [
    "HF_TOKEN", "MY_TOKEN", "HUGGING_FACE_HUB_TOKEN", "aws_secret_access_key", "AWS_SESSION_TOKEN", "authorization",
    "WANDB_API_KEY", "apiKey", "db.password", "PGPASSWORD", "passwd", "client_secret", "access_token", "credentials",
    "private_key", "AccountKey", "passphrase", "X-Auth-Token", "cookie", "pwd",
]  # fmt: skip
FORMS = ["{}", "note {} end", "a={}", "'{}'", "https://x.org/?q={}&b=1", "[{}, 1]"]


@pytest.mark.parametrize("text", FORMS)
def test_no_form_of_a_secret_stays(text: str) -> None:
    left = [secret for secret in SECRETS if secret in str(shareable(text.format(secret)))]
    left += [secret for secret in SECRETS if secret in str(without_secrets({"x": [text.format(secret)]}))]
    assert not left


def test_what_a_secrets_name_holds_goes_wherever_the_name_stands() -> None:
    for name in NAMED:
        for value in (
            {name: "kept4me"}, {"a": {name: ["kept4me"]}}, f"{name}=kept4me", f"{{{name}: kept4me}}",
            f"hydra.job.env_set={{{name}: kept4me}}", f'"{name}": "kept4me"', f"https://h/x?{name}=kept4me&y=1",
        ):  # fmt: skip
            assert "kept4me" not in str(shareable(value)), (name, value)
            assert "kept4me" not in str(without_secrets(value)), (name, value)
    assert "kept4me" not in shareable("see https://user:kept4me@host/x")
    assert "kept4me" not in shareable("Authorization: Bearer kept4me12345")
    assert "kept4me" not in shareable_command(["hydra.job.env_set={HF_TOKEN: kept4me}"])[0]


def test_tokens_of_a_vocabulary_and_other_keys_are_no_secrets() -> None:
    config = {
        "image_token": "<image>",
        "eos_token": "</s>",
        "max_new_tokens": 3,
        "sort_key": "name",
        "key": "k",
        "pass": 2,
    }
    assert shareable(config) == config
    assert without_secrets(config) == config


def test_a_variable_named_as_a_secret_is_hidden_wherever_its_value_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "plainword77")
    assert shareable({"note": "it is plainword77, yes"}) == {"note": "it is ***, yes"}


def test_paths_stay_where_only_secrets_go() -> None:
    assert without_secrets({"root": "/data/alice/x"}) == {"root": "/data/alice/x"}


def test_redaction_takes_time_in_proportion_to_the_text() -> None:
    for unit in ("a+", "'/a", "a=", "x://", "eyJA.", "Bearer ", "-----BEGIN "):
        times = []
        for repeats in (4_000, 16_000):
            text = unit * repeats
            began = time.process_time()
            shareable(text)
            times.append(time.process_time() - began)
        assert times[1] < 12 * times[0] + 0.2, unit  # 4 times the text; quadratic would be 16 times
