"""Tables show every value in full at any width."""

import json

import pytest

from imagemill.jobs.console import print_facts, print_json, print_table

LONG = "a/" * 60 + "b.png"


@pytest.mark.parametrize("width", ["60", "80", ""])
def test_print_table_shows_long_values_whole(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    print_table(["image", "count", "class"], [[LONG, "12", "TooManyPixels"], ["é.png", "3,456", "X"]])
    lines = capsys.readouterr().out.splitlines()
    if width:
        assert lines == ["count  class", "   12  TooManyPixels", f"  image: {LONG}", "3,456  X", "  image: é.png"]
    else:
        assert lines[1] == f"{LONG}     12  TooManyPixels"
        assert len(lines) == 3


def test_print_table_writes_control_characters_as_text(capsys):
    print_table(["image"], [["a\nb\x1b[31m.png"]])
    assert capsys.readouterr().out == "image\na\\x0ab\\x1b[31m.png\n"


def test_print_table_without_rows_prints_headings(capsys):
    print_table(["image", "class"], [])
    assert capsys.readouterr().out == "image  class\n"


def test_print_facts_gives_long_values_their_own_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_facts([("task", "denoise"), ("output", LONG)])
    assert capsys.readouterr().out == f"task    denoise\noutput\n  {LONG}\n"


def test_print_json_needs_no_encoding(capsys):
    print_json({"image": "é\udc80.png", "count": 1})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"image": "é\udc80.png", "count": 1}
