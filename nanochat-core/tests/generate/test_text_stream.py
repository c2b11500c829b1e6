"""Text by pieces is the text of the whole, and no piece ends within a character."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from nanochat.generate.text import TextStream


def check(pieces: list[bytes]) -> list[str]:
    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")

    stream = TextStream(decode)
    shown = [stream.push(token) for token in range(len(pieces))]
    shown.append(stream.finish())
    assert "".join(shown) == decode(range(len(pieces)))
    return shown


def split(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(st.text(alphabet="aé€😀\ufffd\n", max_size=12), st.lists(st.integers(0, 60), max_size=20))
@example("😀", [1, 2, 3])
def test_valid_text_in_any_pieces(text: str, cuts: list[int]) -> None:
    shown = check(split(text.encode(), cuts))
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(shown)


@given(st.binary(max_size=16), st.lists(st.integers(0, 16), max_size=16))
@example(b"\xff\xff\xff\xff\xffab", list(range(8)))
@example(b"\xe2\x82\xac\xf0\x9f\x98", [1, 2, 4, 5])
def test_any_bytes_in_any_pieces(text: bytes, cuts: list[int]) -> None:
    check(split(text, cuts))


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    assert check([b"ab\xf0", b"\x9f\x98", b"\x80c", b"\xff", b"d"]) == [
        "ab",
        "",
        "😀c",
        "",
        "\ufffdd",
        "",
    ]
