"""One long list out of a JSON file, item by item, so that 200 MB of JSON need 2 MB of memory. Standard library only.

``json.load`` of the official VQA v2 validation annotations makes ten dictionaries a question: over 1.5 GB of objects.

Why not ijson 3.6 (yajl2_c): it is about as fast and as small (``benchmarks/vqa_index.py``), but its memory grows with
the square of the depth, so that a damaged file of 20 kB (20,000 open brackets) takes 970 MiB and one of 200 kB over
20 GB; with ``use_float`` it refuses whole numbers above 64 bits, without it gives Decimals; it replaces lone surrogates
by question marks, and refuses a byte order mark.
"""

from __future__ import annotations

import codecs
import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from vlmbench.errors import InputError

CHUNK_BYTES = 2**20
#: A value longer than this is no question or annotation; without the limit a missing quote would read on to the end.
MAX_VALUE_CHARS = 16 * 2**20
_SPACE = " \t\n\r"
_MAY_GO_ON = ("", ".", "e", "E")
_UNFINISHED = "ends in the middle of its JSON (an unfinished download?)"


class _Text:
    """The text of a stream from the current position on, read chunk by chunk."""

    def __init__(self, stream: IO[bytes], source: str) -> None:
        self.source = source
        self.text = ""
        self.pos = 0
        self.dropped = 0  # characters before ``text``
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode

    def more(self, size: int = 0) -> bool:
        """Read on; False at the end of the file."""
        try:
            data = self._stream.read(size or CHUNK_BYTES)
            new = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.source} is not UTF-8 text ({error.reason}); download it again") from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{self.source} cannot be read: {error}") from error
        self.dropped += self.pos
        self.text, self.pos = self.text[self.pos :] + new, 0
        return bool(data)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.pos < len(self.text):
                if self.text[self.pos] not in _SPACE:
                    return self.text[self.pos]
                self.pos += 1
            if not self.more():
                return ""

    def expect(self, allowed: str, what: str) -> str:
        """Take the next character, which must be one of ``allowed``."""
        char = self.peek()
        if not char:
            raise InputError(f"{self.source} {_UNFINISHED}")
        if char not in allowed:
            where = self.dropped + self.pos
            raise InputError(f"{self.source} is malformed JSON at character {where}: {what} expected (got {char!r})")
        self.pos += 1
        return char

    def value(self) -> Any:
        """The next whole JSON value."""
        self.peek()
        size = CHUNK_BYTES
        while True:
            try:
                value, end = self._scan(self.text, self.pos)
                # Where the text ends in a number ("1", "1." or "1e"), it may go on; all else shows its own end.
                cut = end + 3 > len(self.text) and self.text[end : end + 1] in _MAY_GO_ON
                if isinstance(value, str | list | dict) or not cut:
                    self.pos = end
                    return value
                if not self.more(size):
                    raise InputError(f"{self.source} {_UNFINISHED}")
            except RecursionError as error:
                raise InputError(f"{self.source} is refused: its JSON is nested too deeply") from error
            except json.JSONDecodeError as error:
                where = self.dropped + error.pos
                too_long = len(self.text) - self.pos > MAX_VALUE_CHARS
                if too_long or not self.more(size):
                    # At the end of the file an error at its last character is a cut, one before it a mistake.
                    cut = self.dropped + len(self.text) - where <= 1 or error.msg.startswith("Unterminated")
                    what = _UNFINISHED if cut and not too_long else f"is malformed JSON: {error.msg}"
                    raise InputError(f"{self.source} {what}, at character {where}") from error
                size *= 2  # the value is scanned anew: doubling keeps the work linear


def stream_items(stream: IO[bytes], key: str, source: str) -> Iterator[Any]:
    """The items of the list ``key`` of the top-level JSON object; the rest of the object is checked and dropped.

    Args:
        stream: the JSON as bytes of UTF-8.
        source: what error messages call the file.

    Raises:
        InputError: malformed or unfinished JSON, no object at the top, or no such list.
    """
    text = _Text(stream, source)
    seen: list[str] = []
    if text.peek() != "{":
        raise InputError(f"{source} must hold a JSON object with the list '{key}' (got {text.peek() or 'nothing'!r})")
    text.expect("{", "an object")
    if text.peek() == "}":
        text.expect("}", "an end")
    else:
        while True:
            name = text.value()
            text.expect(":", "a colon after a key")
            seen.append(str(name))
            if name == key:
                if text.peek() != "[":
                    raise InputError(f"'{key}' of {source} must be a list")
                yield from _list_items(text)
            else:
                text.value()
            if text.expect(",}", "a comma or a closing brace") == "}":
                break
    if text.peek():
        raise InputError(f"{source} is malformed JSON: text after the closing brace")
    if key not in seen:
        raise InputError(f"{source} has no list '{key}' (it has the keys {', '.join(seen[:10]) or 'none'})")


def _list_items(text: _Text) -> Iterator[Any]:
    text.expect("[", "a list")
    if text.peek() == "]":
        text.expect("]", "an end")
        return
    while True:
        yield text.value()
        if text.expect(",]", "a comma or a closing bracket") == "]":
            return
