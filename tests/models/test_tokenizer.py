"""The offline tokenizer: exact size, exact special ids, plausible token counts for English."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbench.errors import ModelError
from vlmbench.models.offline_tokenizer import build_tokenizer, expand_series, ordinary_words

SPECIAL = {"<s>": 1, "</s>": 2, "<pad>": 3999, "<image>": 2500}
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}
QUESTIONS = (
    "What color is the cat?",
    "How many people are in the picture?",
    "Is the man wearing a hat?",
    "What is the woman holding in her left hand?",
    "Are there any trees behind the house?",
    "What kind of animal is shown?",
    "Where is the dog sitting?",
    "Is this a sunny day?",
    "What sport is being played?",
    "What is on top of the pizza?",
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(size=4000, special_tokens=SPECIAL, roles=ROLES)


@pytest.mark.parametrize("size", [1000, 32064, 152064, 262208])
def test_size_and_ids_are_exact(size):
    made = build_tokenizer(
        size=size, special_tokens={"<e>": 5, "<image>": size - 3}, roles={"eos_token": "<e>", "image_token": "<image>"}
    )
    assert len(made) == size
    assert sorted(made.get_vocab().values()) == list(range(size))
    assert (made.eos_token_id, made.image_token_id) == (5, size - 3)
    assert made("<image><image>", add_special_tokens=False).input_ids == [size - 3] * 2


def test_a_special_id_beyond_the_size_makes_it_grow():
    made = build_tokenizer(size=1000, special_tokens={"<e>": 0, "<image>": 1000}, roles={"eos_token": "<e>"})
    assert len(made) == 1001


def test_every_listed_word_is_one_token(tokenizer):
    full = build_tokenizer(size=32064, special_tokens=SPECIAL, roles=ROLES)
    for word in ordinary_words():
        assert len(full(f" {word}", add_special_tokens=False).input_ids) == 1, word


def test_questions_cost_about_a_token_a_word():
    made = build_tokenizer(size=32064, special_tokens=SPECIAL, roles=ROLES)
    assert made("What color is the cat?", add_special_tokens=False).tokens() == [
        *("What", "\u0120color", "\u0120is", "\u0120the", "\u0120cat", "?")
    ]
    ratio = sum(len(made(q).input_ids) for q in QUESTIONS) / sum(len(q.split()) for q in QUESTIONS)
    assert 1.0 <= ratio <= 1.3


@given(text=st.text(alphabet=st.characters(blacklist_characters="<>", codec="utf-8"), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_and_never_hits_a_special_token(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert not set(ids) & set(SPECIAL.values())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_id_decodes(tokenizer):
    assert all(isinstance(tokenizer.decode([index]), str) for index in range(len(tokenizer)))


def test_bos_is_added_only_when_asked():
    made = build_tokenizer(size=4000, special_tokens=SPECIAL, roles=ROLES, add_bos=True)
    assert made("cat").input_ids[0] == 1
    assert made("cat", add_special_tokens=False).input_ids[0] != 1


def test_it_is_deterministic(tokenizer):
    again = build_tokenizer(size=4000, special_tokens=SPECIAL, roles=ROLES)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_series():
    made = expand_series([{"pattern": "<row_%d_col_%d>", "start": 100, "shape": [2, 3], "first": 1}])
    assert made == {
        "<row_1_col_1>": 100,
        "<row_1_col_2>": 101,
        "<row_1_col_3>": 102,
        "<row_2_col_1>": 103,
        "<row_2_col_2>": 104,
        "<row_2_col_3>": 105,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"special_tokens": {"<a>": 7, "<b>": 7}}, "same id 7"),
        ({"special_tokens": {"<a>": -1}}, "0 or more"),
        ({"roles": {"eos_token": "<nope>"}}, "<nope>"),
        ({"size": 100, "special_tokens": {"<a>": 3}}, "no room"),
        ({"series": [{"pattern": "<x>", "start": 1, "shape": [2]}]}, "series"),
        ({"series": [{"pattern": "<x%d>", "shape": [2]}]}, "series"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    arguments = {"size": 4000, "special_tokens": SPECIAL, "roles": {}} | change
    with pytest.raises(ModelError, match=message):
        build_tokenizer(**arguments)
