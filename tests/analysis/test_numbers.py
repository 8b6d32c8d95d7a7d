from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench import text


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.4234, "0.423 ms"), (18.94, "18.9 ms"), (181.4, "181 ms"), (1234.5, "1,230 ms"), (9999, "10,000 ms"), (12345, "12.3 s"), (0, "0 ms"), (None, "–"), (float("nan"), "–"), (-0.05, "-0.0500 ms"), (9.996, "10.0 ms"), (99.95, "100 ms")],
)  # fmt: skip
def test_ms(value: float | None, written: str) -> None:
    assert text.ms(value) == written


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.8449, "84.5 %"), (0.0005, "0.05 %"), (0, "0.00 %"), (1, "100 %"), (-0.0006, "-0.06 %"), (None, "–")],
)
def test_percent(share: float | None, written: str) -> None:
    assert text.percent(share) == written


@pytest.mark.parametrize(
    ("low", "high", "unit", "written"),
    [(165, 187, "ms", "165–187 ms"), (0.84, 0.85, "%", "84.0–85.0 %"), (-0.0006, 0.0008, "%", "-0.06 to 0.08 %"), (0.998, 1.0012, "×", "0.998–1.001×"), (11000, 12000, "ms", "11.0–12.0 s"), (None, 2, "ms", ""), (1, float("nan"), "ms", "")],
)  # fmt: skip
def test_span(low: float | None, high: float | None, unit: str, written: str) -> None:
    assert text.span(low, high, unit) == written


@given(st.floats(1e-6, 1e6))
def test_three_digits_stay_true(value: float) -> None:
    assert float(text.digits(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("value", "significant", "written"),
    [(1712.3, 3, "1,710"), (1712.3, 4, "1,712"), (6.4e-5, 2, "0.000064"), (-1.26e-7, 3, "-0.000000126"), (3e-12, 3, "0"), (2.5e8, 3, "250,000,000")],
)  # fmt: skip
def test_numbers_are_plain(value: float, significant: int, written: str) -> None:
    assert text.digits(value, significant) == written


@given(st.floats(-1e12, 1e12))
def test_no_power_of_ten_is_ever_written(value: float) -> None:
    assert "e" not in text.digits(value) + text.whole(value) + text.interval(value, 2 * value)


def test_counts_as_they_are() -> None:
    assert [text.whole(x) for x in (1048576.0, 64.0, 0.5)] == ["1,048,576", "64", "0.500"]
    assert text.interval(19.04, 1712.3) == "19.0 to 1,710"


def test_cells_and_counts() -> None:
    assert text.quantile_cell({"value": 180.0, "low": 165.0, "high": 187.0}) == "180 [165–187]"
    assert text.quantile_cell({"value": None, "note": "n too small: 5 of 368"}) == "n too small"
    assert text.quantile_cell({"value": 3.0, "low": None, "high": None, "note": "n too small: 1 of 6"}) == "3.00"
    assert text.quantile_cell(None) == "–"
    assert (text.count(1, "run"), text.count(2000, "run")) == ("1 run", "2,000 runs")
    assert text.tokens("num_vision_tokens") == "vision tokens"
    assert [text.plain(x) for x in (100.0, 2.5, 0.1, 1e4)] == ["100", "2.5", "0.1", "10,000"]
    assert (text.factor(3.7612), text.factor(1.0002), text.factor(None)) == ("3.76×", "1.000×", "–")


def test_amounts() -> None:
    assert [text.amount(n) for n in (6_950_000_000, 303_000_000, 88_224, 999)] == [
        "6.95 B",
        "303 M",
        "88.2 k",
        "999",
    ]
