import os
from pathlib import Path

import pytest

from nanochat_chunker.files import Dropped, Project, find_projects, read_source, walk
from nanochat_chunker.settings import DEFAULT_EXTENSIONS


def names(folder, layout="auto"):
    return [project.name for project in find_projects([folder], DEFAULT_EXTENSIONS, layout)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \r\n\t\n", "empty"),
        (b"int a;\0int b;", "nul_bytes"),
        ("int a;\n".encode("utf-16"), "nul_bytes"),
        ("// 整数を返す関数\nint 値;\n".encode("shift_jis"), "not_utf8"),
        (b"x" * 1001, "too_large"),
    ],
)
def test_bytes_that_give_no_text_are_dropped_with_their_reason(make, chunk, content, reason):
    folder = make({"p/bad.c": content, "p/good.c": "int good;\n"})
    texts, manifest = chunk(folder, "--max-file-bytes", "1000")
    assert texts == ["// good.c\nint good;\n"]
    assert manifest["files"]["dropped"] == {reason: 1}


def test_a_file_of_just_the_size_is_kept(make, chunk):
    texts, _ = chunk(make({"p/a.c": b"x" * 1000}), "--max-file-bytes", "1000")
    assert len(texts) == 1


def test_latin1_is_decoded_and_counted(make, chunk):
    source = "// Autor: Jürgen Müller\nint a;\nint b;\nint c;\n"
    texts, manifest = chunk(make({"p/a.c": source.encode("latin-1")}))
    assert texts == ["// a.c\n" + source]
    assert manifest["files"]["notes"]["decoded_latin-1"] == 1


def test_line_ends_and_bom_are_normalised_so_that_such_copies_are_duplicates(make, chunk):
    folder = make(
        {
            "p/a.c": b"\xef\xbb\xbfint a;\r\nint b;\r\n",
            "p/b.c": b"int a;\nint b;\n",
            "q/c.c": b"int a;\rint b;\r",
        }
    )
    texts, manifest = chunk(folder)
    assert texts == ["// a.c\nint a;\nint b;\n"]
    assert manifest["files"]["dropped"] == {"duplicate": 2}
    assert manifest["projects"]["q"]["files"] == 0


def test_links_are_counted_and_not_followed(make, chunk, tmp_path):
    folder = make({"p/sub/a.c": "int a;\n"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.c").write_text("int secret;\n")
    project = folder / "p"
    (project / "up").symlink_to("..", target_is_directory=True)
    (project / "sub" / "self").symlink_to("self")
    (project / "elsewhere").symlink_to(tmp_path / "outside", target_is_directory=True)
    (project / "copy.c").symlink_to("sub/a.c")
    (project / "broken.h").symlink_to("nowhere.h")
    (folder / "loop").symlink_to(".", target_is_directory=True)
    texts, manifest = chunk(folder)
    assert texts == ["// sub/a.c\nint a;\n"]
    assert manifest["files"]["dropped"] == {"symlink": 4}


def test_a_linked_project_is_followed_and_taken_once(make, tmp_path):
    folder = make({"p/a.c": "int a;\n"})
    make({"b.c": "int b;\n"}, root="elsewhere")
    (folder / "q").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "r").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert names(folder) == ["p", "q"]


def test_pipes_and_hidden_folders_are_counted(make, chunk):
    folder = make({"p/a.c": "int a;\n", "p/.cache/b.c": "int b;\n"})
    os.mkfifo(folder / "p" / "pipe.c")
    _, manifest = chunk(folder)
    assert manifest["files"]["dropped"] == {"hidden_folder": 1, "not_a_regular_file": 1}


def test_reading_never_waits_on_a_pipe_nor_follows_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe.c")
    (tmp_path / "link.c").symlink_to("/etc/hostname")
    assert read_source(tmp_path / "pipe.c", 100) == Dropped("not_a_regular_file")
    assert read_source(tmp_path / "link.c", 100) == Dropped("unreadable")
    assert read_source(tmp_path / "gone.c", 100) == Dropped("unreadable")


def test_unreadable_files_and_folders_are_counted(make, chunk, monkeypatch):
    """As a superuser nothing is unreadable, so the refusal is put in."""
    folder = make({"p/a.c": "int a;\n", "p/locked.c": "int b;\n", "p/vault/c.c": "int c;\n"})
    system_open, system_scandir = os.open, os.scandir

    def refusing_open(path, *args, **kwargs):
        if str(path).endswith("locked.c"):
            raise PermissionError(13, "Permission denied", str(path))
        return system_open(path, *args, **kwargs)

    def refusing_scandir(path):
        if str(path).endswith("vault"):
            raise PermissionError(13, "Permission denied", str(path))
        return system_scandir(path)

    monkeypatch.setattr("nanochat_chunker.files.os.open", refusing_open)
    monkeypatch.setattr("nanochat_chunker.files.os.scandir", refusing_scandir)
    texts, manifest = chunk(folder)
    assert texts == ["// a.c\nint a;\n"]
    assert manifest["files"]["dropped"] == {"unreadable": 1, "unreadable_folder": 1}


def test_names_that_are_not_text(make, chunk):
    folder = make({"p/a.c": "int a;\n"})
    Path(os.fsdecode(os.fsencode(folder / "p") + b"/b\xff\n.c")).write_text("int b;\n")
    texts, _ = chunk(folder)
    assert texts == ["// a.c\nint a;\n\n// b\ufffd\ufffd.c\nint b;\n"]


def test_a_file_that_changes_between_the_passes_is_dropped(make, chunk, monkeypatch):
    folder = make({"p/a.c": "int a;\n", "p/b.c": "int b;\n"})
    from nanochat_chunker import pipeline

    choose = pipeline.choose

    def change_then_choose(*args):
        (folder / "p" / "a.c").write_text("int changed;\n")
        return choose(*args)

    monkeypatch.setattr(pipeline, "choose", change_then_choose)
    texts, manifest = chunk(folder)
    assert texts == ["// b.c\nint b;\n"]
    assert manifest["files"]["dropped"] == {"changed_while_reading": 1}


def test_each_subfolder_is_a_project_and_loose_files_are_one_more(make):
    folder = make({"a/x.c": "1", "b/x.c": "2", ".hidden/x.c": "3", "loose.h": "4", "README": "5"})
    assert names(folder) == ["a", "b", "projects"]
    [loose] = [p for p in find_projects([folder], DEFAULT_EXTENSIONS, "auto") if p.loose]
    assert walk(loose, DEFAULT_EXTENSIONS).paths == ["loose.h"]


@pytest.mark.parametrize("marker", ["CMakeLists.txt", ".git/config", "meson.build", "Makefile"])
def test_a_folder_with_a_build_file_is_one_project(make, marker):
    folder = make({"src/x.c": "1", "include/x.h": "2", marker: "3"})
    assert names(folder) == ["projects"]
    assert names(folder, "many") == ["include", "src"]


def test_layout_one_takes_the_folder_whole(make):
    assert names(make({"src/x.c": "1", "include/x.h": "2"}), "one") == ["projects"]


def test_projects_of_one_name_are_told_apart(make):
    first, second = make({"zlib/a.c": "1"}, "old"), make({"zlib/a.c": "2", "png/b.c": "3"}, "new")
    found = [p.name for p in find_projects([first, second], DEFAULT_EXTENSIONS, "auto")]
    assert found == ["new/zlib", "old/zlib", "png"]
    again = [p.name for p in find_projects([second, first], DEFAULT_EXTENSIONS, "auto")]
    assert again == found


def test_extensions_count_in_any_case_and_others_do_not(make):
    folder = make({"p/A.CPP": "1", "p/b.py": "2", "p/c.cu": "3", "p/d.h.in": "4", "p/.h": "5"})
    tree = walk(Project("p", folder / "p"), DEFAULT_EXTENSIONS)
    assert tree.paths == ["A.CPP", "c.cu"]
    assert tree.other_files == 3


def test_extensions_can_be_chosen(make, chunk):
    folder = make({"p/a.inc": "int a;\n", "p/b.c": "int b;\n"})
    texts, manifest = chunk(folder, "--extensions", "INC", ".inc")
    assert texts == ["// a.inc\nint a;\n"]
    assert manifest["settings"]["extensions"] == [".inc"]
