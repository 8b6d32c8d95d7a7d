import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.data.options import check_num_samples, check_prompt, fill, take


@given(total=st.integers(0, 200), less=st.integers(1, 250), more=st.integers(0, 250), seed=st.integers(0, 5))
def test_fewer_samples_are_the_first_of_more(total, less, more, seed):
    few = list(take(range(total), num_samples=less, shuffle=True, seed=seed))
    many = list(take(range(total), num_samples=less + more, shuffle=True, seed=seed))
    assert few == many[: len(few)]
    assert len(many) == len(set(many)) == min(total, less + more)
    assert sorted(take(range(total), num_samples=None, shuffle=True, seed=seed)) == list(range(total))
    assert list(take(range(total), num_samples=less, shuffle=False, seed=seed)) == list(range(min(less, total)))


def test_the_order_depends_on_the_seed():
    orders = {tuple(take(range(50), num_samples=None, shuffle=True, seed=seed)) for seed in range(10)}
    assert len(orders) == 10


@given(st.text())
def test_a_question_stands_verbatim_in_its_prompt(question):
    assert fill("{question}", question) == question
    assert fill("a {b} {question}!", question) == f"a {{b}} {question}!"


def test_wrong_options_are_named():
    for prompt in ("", "question", "{question} {question}"):
        with pytest.raises(ValueError, match="'prompt' must hold"):
            check_prompt(prompt)
    with pytest.raises(ValueError, match=r"'num_samples' must be 1 or more, or null for all .got 0"):
        check_num_samples(0)
    check_num_samples(None)
