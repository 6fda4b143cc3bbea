"""Names written and read back: against bash, UTF-8 and Python's own decoding."""

import csv
import io
import json
import os
import random
import subprocess

import pytest

from vgg_flax import spelling

BYTES = [
    b"caf\xe9",
    b"\xff\xfe",
    b"a\\xe9",
    b"a\\",
    b"\\n",
    b"new\nline",
    b"esc\x1b[31mred\x7f",
    "caf\u00e9 \u6771\u4eac \U0001f600".encode(),
    "\u0085\u00a0\u202e\u2028\U000e0001".encode(),
    b"\x80\xc2\x80",
]


@pytest.mark.parametrize("name", BYTES)
def test_bash_reads_what_is_shown_as_the_name(name: bytes) -> None:
    text = os.fsdecode(name)
    shown = spelling.shown(text)
    assert shown.isprintable() and shown.encode()
    for writing in (shown, spelling.written(text)):
        done = subprocess.run(
            ["bash", "-c", f"printf %s $'{writing}'".encode()],
            capture_output=True,
            check=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert done.stdout == name


def test_no_two_names_are_written_alike_and_each_comes_back() -> None:
    draw = random.Random(0)
    alphabet = ["\\", "x", "u", "e9", "n", "\n", "\x1b", "\x80", "\u00e9", "\udce9"]
    alphabet += ["\ud800", "\U000e0001", "0085", "\x85", "a"]
    names = {"".join(draw.choices(alphabet, k=draw.randint(1, 5))) for _ in range(5000)}
    for write in (spelling.shown, spelling.spelt, spelling.written):
        writings = {name: write(name) for name in names}
        assert len(set(writings.values())) == len(names)
        for name, writing in writings.items():
            assert writing.encode()  # UTF-8 holds it
            assert spelling.restored(writing) == name
    assert all(spelling.spelt(name).isascii() for name in names)


def test_a_name_that_files_can_hold_is_itself() -> None:
    for name in ("a.png", 'a "b", c', "caf\u00e9", "cafe\u0301", "a\nb", "\x1b[0m"):
        assert spelling.written(name) == name
    document = {"caf\udce9": ["\udcff", 1, None, {"x": ("y", 0.5)}]}
    written = spelling.written(document)
    assert written == {"caf\\xe9": ["\\xff", 1, None, {"x": ["y", 0.5]}]}
    assert "\\ud" not in json.dumps(written)
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(spelling.written(["a\nb", "\udce9,"]))
    stream.seek(0)
    assert next(csv.reader(stream)) == ["a\nb", "\\xe9,"]


def test_a_message_keeps_its_backslashes_and_moves_no_cursor() -> None:
    assert spelling.line("it's C:\\a, caf\udce9\x1b[2J\n") == (
        "it's C:\\a, caf\\xe9\\x1b[2J\\n"
    )


def test_digests_of_utf8_are_as_they_always_were() -> None:
    assert spelling.digestible("caf\u00e9/\u6771") == "caf\u00e9/\u6771".encode()
    assert len({spelling.digestible(c) for c in ("\udce9", "\ud800", "?")}) == 3
