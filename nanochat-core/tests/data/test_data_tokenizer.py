"""The tokenizer: exact round trips, the same ids as the library of the stored format, bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.data.tokenizer import (
    SMALLEST_VOCAB,
    SPECIAL_TOKENS,
    Tokenizer,
    vocab_size_of,
)
from nanochat.errors import UsageError

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Text that falls on the seams of the split pattern more often than plain random text does.
BLANKS = (" ", "  ", "\n", "\r\n", "\t", " \n ", "\u00a0", "\u2028", "\x85", "\x1c", "\ufeff")
PIECES = ("'s", "'LL", "'\u017f", "1", "23", "٣", "½", "_", "::", "std", "vector", "ß", "İ", "\x00")
MARKS = ("e\u0301", "🙂", "\U0001f468\u200d\U0001f469", "\ufffd")
CODE = st.lists(
    st.one_of(
        st.sampled_from((*BLANKS, *PIECES, *MARKS, *SPECIAL_TOKENS)),
        st.text(max_size=6),
    ),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module")
def stored(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer.save(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def reference(stored: Path) -> tokenizers.Tokenizer:
    """The library whose format the file has."""
    reference = tokenizers.Tokenizer.from_file(str(stored))
    reference.encode_special_tokens = True  # special tokens in a text are text
    return reference


def test_same_ids_as_the_library_on_code(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, headers: list[str]
) -> None:
    for text in headers:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


@FUZZ
@given(text=st.one_of(st.text(), CODE))
def test_same_ids_as_the_library_on_anything(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str
) -> None:
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", [r"\p{L}", r"\p{N}", r"\s"])
def test_both_engines_know_the_same_characters(kind: str) -> None:
    """Their Unicode tables could differ by versions: every character there is."""
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    text = "|".join(characters)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(kind), behavior="removed")
    others = {c for part, _ in split.pre_tokenize_str(text) for c in part}
    single = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("x", pat_str=kind, mergeable_ranks=single, special_tokens={})
    matched = bytes(encoding.encode_ordinary(text)).decode()
    assert set(characters) - others == set(matched)


def test_the_library_knows_the_special_tokens(tokenizer: Tokenizer, stored: Path) -> None:
    plain = tokenizers.Tokenizer.from_file(str(stored))
    assert plain.get_vocab_size() == tokenizer.vocab_size
    for name in SPECIAL_TOKENS:
        assert plain.token_to_id(name) == tokenizer.special(name)
        assert plain.encode(name).ids == [tokenizer.special(name)]


@FUZZ
@given(text=st.one_of(st.text(), CODE))
def test_round_trip_and_sizes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).tolist() == ids
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not set(ids) & set(tokenizer.specials.values())


@FUZZ
@given(data=st.binary())
def test_any_bytes_can_be_written(tokenizer: Tokenizer, data: bytes) -> None:
    single = {tokenizer.decode_bytes([i]): i for i in range(256)}
    assert tokenizer.decode_bytes([single[bytes([byte])] for byte in data]) == data
    text = data.decode("latin-1")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    for encoded in (tokenizer.encode("a\ud800b"), tokenizer.encode_array("a\ud800b").tolist()):
        assert tokenizer.decode(encoded) == "a\ufffdb"
    assert tokenizer.decode([tokenizer.encode("\u4e00")[0]]) == "\ufffd"  # a part of a character


@pytest.mark.parametrize("blank", [" ", "\t", "\n", " \n", "a", "="])
def test_very_long_runs(tokenizer: Tokenizer, blank: str) -> None:
    text = f"x{blank * 1_000_000}y"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_array(text).tolist()) == text


def test_training_takes_very_long_runs_and_lone_surrogates() -> None:
    tokenizer = Tokenizer.train(["a" + " " * 1_000_000 + "b", "c\ud800d"], 300)
    assert tokenizer.decode(tokenizer.encode("ab  ")) == "ab  "


def test_special_tokens_end_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - len(ids), tokenizer.vocab_size))
    assert tokenizer.bos_id == ids[0]
    assert not tokenizer.token_bytes()[ids].any()
    assert (tokenizer.token_bytes()[: -len(ids)] > 0).all()
    assert tokenizer.decode([tokenizer.bos_id]) == "<|bos|>"
    with pytest.raises(UsageError, match=r"no special token <\|nope\|>"):
        tokenizer.special("<|nope|>")


def test_at_most_two_digits_together(tokenizer: Tokenizer) -> None:
    for i in range(tokenizer.vocab_size - len(SPECIAL_TOKENS)):
        digits = sum(chr(byte).isdigit() for byte in tokenizer.decode_bytes([i]) if byte < 128)
        assert digits <= 2


def test_batches_are_the_same_as_single_texts(tokenizer: Tokenizer, headers: list[str]) -> None:
    assert tokenizer.encode_batch(headers[:20], threads=3) == [
        tokenizer.encode(text) for text in headers[:20]
    ]
    assert tokenizer.encode_batch([]) == []


def test_training_and_saving_are_deterministic(
    texts_of: Callable[..., list[str]], tmp_path: Path
) -> None:
    one = Tokenizer.train(texts_of(80), 500)
    two = Tokenizer.train(iter(texts_of(80)), 500)
    assert one.fingerprint == two.fingerprint
    assert one.save(tmp_path / "a").read_bytes() == two.save(tmp_path / "b").read_bytes()
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.fingerprint == one.fingerprint
    assert loaded.vocab_size == one.vocab_size == vocab_size_of(tmp_path / "a" / "tokenizer.json")
    other = Tokenizer.train(texts_of(80), 501)
    assert other.fingerprint != one.fingerprint
    other.save(tmp_path / "a")  # replaces
    assert Tokenizer.load(tmp_path / "a").fingerprint == other.fingerprint
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["tokenizer.json"]


def test_little_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = Tokenizer.train(["hello hello world"], 5000)
    assert SMALLEST_VOCAB < tokenizer.vocab_size < 300
    assert tokenizer.special("<|pad|>") == tokenizer.vocab_size - 1
    assert tokenizer.decode(tokenizer.encode("hello, wörld")) == "hello, wörld"


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="no text"):
        Tokenizer.train(texts, 1000)


@pytest.mark.parametrize("size", [SMALLEST_VOCAB - 1, 0, -5])
def test_a_vocabulary_without_room_is_an_error(size: int) -> None:
    with pytest.raises(UsageError, match="too small"):
        Tokenizer.train(["text"], size)


def test_the_smallest_vocabulary_works() -> None:
    tokenizer = Tokenizer.train(["some text"], SMALLEST_VOCAB)
    assert tokenizer.vocab_size == SMALLEST_VOCAB
    assert tokenizer.decode(tokenizer.encode("Ünï")) == "Ünï"


def test_an_error_of_the_texts_comes_through() -> None:
    def texts():
        yield "one"
        raise UsageError("shard 7 is damaged")

    with pytest.raises(UsageError, match="shard 7"):
        Tokenizer.train(texts(), 1000)


def test_vocab_size_needs_no_library(stored: Path, tokenizer: Tokenizer) -> None:
    script = (
        "import sys; from nanochat.data.tokenizer import vocab_size_of;"
        "print(vocab_size_of(sys.argv[1]));"
        "print([m for m in ('torch','tokenizers','tiktoken','rustbpe') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(stored)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[:2] == [str(tokenizer.vocab_size), "[]"]


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


@pytest.mark.parametrize(
    ("apply", "says"),
    [
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: b"", "damaged"),
        (lambda content: b"\xff\xfe\x00", "damaged"),
        (lambda content: b"[1, 2]", "damaged"),
        (damage(lambda d: d.pop("model")), "damaged"),
        (damage(lambda d: d["model"]["merges"].pop()), "damaged"),
        (damage(lambda d: d["added_tokens"][0].update(id=5)), "damaged"),
        (damage(lambda d: d["model"]["merges"].reverse()), "order of its merges"),
        (damage(lambda d: d["model"].update(type="WordPiece")), "WordPiece"),
        (damage(lambda d: d.update(normalizer={"type": "NFC"})), "normalizer"),
        (damage(lambda d: d.update(pre_tokenizer=None)), "split"),
        (damage(lambda d: d["added_tokens"][0].update(content="<s>")), r"no special token <\|bos"),
        (
            damage(lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("})),
            "does not compile",
        ),
    ],
)
def test_damaged_and_foreign_files_are_told_apart(
    stored: Path, tmp_path: Path, apply: Callable[[bytes], bytes], says: str
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(apply(stored.read_bytes()))
    with pytest.raises(UsageError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert str(file) in caught.value.message
    assert "nanochat-tokenizer train" in caught.value.remedy


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    for load in (Tokenizer.load, vocab_size_of):
        with pytest.raises(UsageError, match=r"no tokenizer\.json.*nanochat-tokenizer train"):
            load(tmp_path)
        with pytest.raises(UsageError, match="there is no tokenizer at"):
            load(tmp_path / "nowhere")


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for path in (tmp_path, tmp_path / "tokenizer.pkl"):
        with pytest.raises(UsageError, match=r"pickle.*nanochat-tokenizer train"):
            Tokenizer.load(path)


def test_merges_written_in_the_older_form_load(stored: Path, tmp_path: Path) -> None:
    joined = damage(lambda d: d["model"].update(merges=[" ".join(m) for m in d["model"]["merges"]]))
    (tmp_path / "tokenizer.json").write_bytes(joined(stored.read_bytes()))
    text = "std::vector<int> x = {1, 2};"
    assert Tokenizer.load(tmp_path).encode(text) == Tokenizer.load(stored).encode(text)


def test_a_folder_that_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        tokenizer.save(tmp_path / "file")
