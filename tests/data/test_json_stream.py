import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.data import json_stream
from vlmbench.data.json_stream import stream_items
from vlmbench.errors import InputError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def items(data: bytes, key: str = "questions") -> list[object]:
    return list(stream_items(io.BytesIO(data), key, "q.json"))


class Dribble(io.BytesIO):
    """Hands out a few bytes at a time, so that every value is cut somewhere."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self.size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.size)


@given(
    before=st.dictionaries(st.text().filter(lambda k: k != "questions"), values, max_size=3),
    wanted=st.lists(values, max_size=6),
    size=st.integers(1, 7),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_same_items_as_json_however_the_bytes_are_cut(before, wanted, size, indent, ascii_only):
    document = {**before, "questions": wanted, "zz last": 1.5}
    data = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # lone surrogates are no UTF-8
    assert list(stream_items(Dribble(data, size), "questions", "q.json")) == json.loads(data)["questions"]


@given(cut=st.integers(0, 10_000), wanted=st.lists(values, min_size=1, max_size=4))
def test_a_cut_file_is_refused_and_named(cut, wanted):
    data = json.dumps({"a": 1, "questions": wanted, "b": [2]}).encode()
    with pytest.raises(InputError, match=r"q\.json"):
        items(data[: cut % len(data)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must hold a JSON object"),
        (b"[]", "must hold a JSON object"),
        (b"{}", "has no list 'questions' .it has the keys none"),
        (b'{"question": []}', "has no list 'questions' .it has the keys question"),
        (b'{"questions": {}}', "must be a list"),
        (b'{"questions": [1, 2', "ends in the middle"),
        (b'{"questions": [{"a": "b', "ends in the middle"),
        (b'{"questions": [1 2]}', "malformed JSON at character 17: a comma"),
        (b'{"questions": [{"a" 1}]}', "malformed JSON: Expecting ':'"),
        (b'{"a": 1., "questions": [1]}', "malformed JSON at character 7: a comma"),
        (b'{"questions": [1]} x', "text after the closing brace"),
        (b'{"questions": ["\xff"]}', "not UTF-8"),
        (b'{"questions": [' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_malformed_files_are_named_with_the_mistake(data, message):
    with pytest.raises(InputError, match=message) as caught:
        items(data)
    assert "q.json" in str(caught.value)


def test_a_value_without_end_is_given_up_early(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARS", 1000)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 100)
    stream = io.BytesIO(b'{"questions": ["' + b"x" * 1_000_000)
    with pytest.raises(InputError, match="malformed JSON"):
        list(stream_items(stream, "questions", "q.json"))
    assert stream.tell() < 10_000


def test_byte_order_mark_is_skipped():
    assert items(b'\xef\xbb\xbf{"questions": [1]}') == [1]
