import json
import random
import re

import pytest

from nanochat_chunker.documents import Packer
from nanochat_chunker.splitting import cut_costs, split_text
from nanochat_chunker.tokens import ByteMeter, TokenizerMeter


def pack(files, max_tokens, meter=None):
    packer = Packer(meter or ByteMeter(), max_tokens)
    documents = [d for path, text in files for d in packer.add(path, text)]
    return documents + list(packer.finish()), packer.notes


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE of little code, with a special token that text must not trigger."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["int main() {\n  return 0;\n}\n\n// src/a.cc\nclass A {\n"] * 20, trainer
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def random_code(rng, lines):
    pieces = [
        "int f() {",
        "}",
        "",
        "  x = 1;",
        "// }",
        '"{";',
        "/* {",
        "*/",
        "#if A",
        "#else",
        "#endif",
        "ü" * 9,
    ]
    return "\n".join(rng.choice(pieces) for _ in range(lines))


def test_fills_documents_in_order_and_leaves_whole_files_whole():
    files = [(f"{i}.c", f"int v{i};\n" * 10) for i in range(20)]  # 90 to 110 bytes with the path
    documents, notes = pack(files, 64)
    assert [p for d in documents for p in d.paths] == [path for path, _ in files]
    assert [len(d.paths) for d in documents] == [2] * 10
    assert documents[0].text == "// 0.c\n" + files[0][1] + "\n// 1.c\n" + files[1][1]
    assert not notes["files_split"]


def test_a_document_may_be_exactly_full_and_not_a_byte_more():
    line = len("// a.c\n")
    exact = "x" * (64 * 4 - line - 1) + "\n"
    documents, notes = pack([("a.c", exact)], 64)
    assert [d.tokens for d in documents] == [64]
    assert not notes
    documents, notes = pack([("a.c", "y" + exact)], 64)
    assert len(documents) == 2
    assert notes["files_split"] == 1


def test_tokens_are_bytes_over_four_rounded_up():
    [document], _ = pack([("a.c", "é\n")], 64)
    assert document.tokens == -(-len("// a.c\né\n".encode()) // 4)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("exact", [False, True])
def test_no_document_is_over_budget_and_no_text_is_lost(seed, exact, tokenizer_file):
    rng = random.Random(seed)
    meter = TokenizerMeter(tokenizer_file) if exact else ByteMeter()
    max_tokens = rng.choice([64, 100, 300])
    files = [(f"dir/{i}.cc", random_code(rng, rng.randrange(1, 150))) for i in range(12)]
    documents, _ = pack(files, max_tokens, meter)
    for document in documents:
        assert document.tokens == meter.tokens(meter.units(document.text))
        assert document.tokens <= max_tokens

    # Without path lines and empty lines, the documents are the files.
    def body(text):
        lines = text.split("\n")
        return [line for line in lines if line and not re.match(r"// (dir/|\.\.\.)", line)]

    assert [x for d in documents for x in body(d.text)] == [
        x for _, text in files for x in body(text)
    ]


def test_a_long_file_is_cut_between_top_level_blocks():
    function = "int f%d() {\n  int x = 1;\n\n  return x;\n}\n"
    text = "#ifndef G\n#define G\nnamespace a {\n\n" + "\n".join(function % i for i in range(30))
    documents, notes = pack([("a.h", text + "\n}\n#endif\n")], 80)
    assert notes["files_split"] == 1
    assert notes["lines_cut"] == 0
    for number, document in enumerate(documents, 1):
        first, rest = document.text.split("\n", 1)
        assert first == f"// a.h (part {number} of {len(documents)})"
        assert rest.startswith(("#ifndef G", "int f"))


@pytest.mark.parametrize(
    "trap",
    [
        "// {\n",
        "/* { */\n",
        'const char* s = "{";\n',
        "char c = '{';\n",
        'auto r = R"x({ )" {)x";\n',
        "#if A\nvoid f() {\n#else\nvoid g() {\n#endif\n}\n",
        "int n = 1'000'000;\n",
        'extern "C" {\n',
        "inline namespace v1 {\n",
        "namespace a::b\n{\n",
        "}\n",
    ],
)
def test_depth_is_not_misled(trap):
    lines = f"{trap}\nint here;\n".splitlines(keepends=True)
    assert cut_costs(lines)[-1] == 0


@pytest.mark.parametrize(
    "block",
    [
        "struct S {\n\n%s};\n",
        "/*\n\n%s*/\n",
        'auto r = R"(\n\n%s)";\n',
        "#define M \\\n%s\n",
        "enum {\n\n%s};\n",
    ],
)
def test_no_free_cut_inside(block):
    lines = (block % "int here;\n").splitlines(keepends=True)
    assert cut_costs(lines)[lines.index("int here;\n")] > 0


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "}" * 100_000,
        '\\"' * 100_000,
        'R"(' * 50_000,
        "/*" * 50_000,
        "'\\" * 50_000,
        "#if\n{\n#else\n}}\n" * 10_000,
        "namespace " * 20_000 + "{" * 1000,
        "x" * 1_000_000,
        "é" * 100_000 + "\n" + "y" * 100_000,
        "\f\v\x1c\u2028" * 10_000,
    ],
)
def test_hostile_text_is_cut_without_loss(text):
    pieces, _ = split_text(text, ByteMeter(), 4000)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 4000 for piece in pieces)


def test_a_line_longer_than_a_document_is_cut_and_counted(make, chunk):
    texts, manifest = chunk(
        make({"p/a.c": "int a[] = {" + "1," * 500 + "};\n"}), "--max-tokens", "64"
    )
    assert manifest["files"]["notes"] == {"files_split": 1, "lines_cut": 1}
    assert all(len(text) <= 256 for text in texts)
    assert "".join(text.split("\n", 1)[1][:-1] for text in sorted(texts)).count("1,") == 500


def test_a_path_longer_than_a_document_leaves_room_for_code(make, chunk):
    folder = make({"p/" + "long_folder_name/" * 13 + "a.c": "int a = 1;\n"})
    [text], _ = chunk(folder, "--max-tokens", "64")
    assert text.endswith("/a.c\nint a = 1;\n")
    assert len(text) <= 256


def test_with_a_tokenizer_tokens_are_its_own(make, chunk, tokenizer_file):
    from tokenizers import Tokenizer

    source = 'const char* bos = "<|bos|>";\n'
    folder = make({"p/a.c": source})
    for path in (tokenizer_file, tokenizer_file.parent):
        [text], manifest = chunk(folder, "--tokenizer", str(path))
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        tokenizer.encode_special_tokens = True
        assert manifest["documents"]["train_tokens"] == len(tokenizer.encode(text).ids)
        assert tokenizer.token_to_id("<|bos|>") not in tokenizer.encode(text).ids
        assert "counted by the tokenizer" in manifest["tokens_by"]["method"]


def test_the_manifest_adds_up(make, chunk):
    folder = make({f"p{i % 3}/{i}.c": f"int v{i};\n" * (i + 1) for i in range(40)})
    texts, manifest = chunk(folder, "--max-tokens", "64", "--seed", "3")
    documents, lengths = manifest["documents"], manifest["lengths"]
    assert documents["train"] == len(texts)
    assert documents["bytes"] == sum(len(text.encode()) for text in texts)
    assert documents["train_tokens"] == sum(-(-len(text) // 4) for text in texts)
    assert sum(bar["documents"] for bar in lengths["histogram"]) == len(texts)
    assert lengths["most"] == max(-(-len(text) // 4) for text in texts)
    assert manifest["files"]["kept"] == 40
    assert set(manifest["projects"]) == {"p0", "p1", "p2"}
    assert sum(p["tokens"] for p in manifest["projects"].values()) == documents["train_tokens"]
    assert manifest["settings"]["seed"] == 3
    assert json.dumps(manifest["tokens_by"]).count("bytes / 4") == 1
