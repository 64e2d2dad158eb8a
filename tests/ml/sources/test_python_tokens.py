"""Statements of the standard library with tags from their syntax tree."""

import ast
import json
import subprocess
import sys

import pytest

from ml.python_files import standard_library
from ml.sources import python_tokens
from ml.sources.python_tokens import PythonTokens
from ml.tag_metrics import Scheme


@pytest.fixture(scope="module")
def source():
    return PythonTokens(PythonTokens.Options(statements=150))


def tagged(tmp_path, text):
    (tmp_path / "x.py").write_text(text)
    return [" ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in words) for _, words in python_tokens._statements(tmp_path / "x.py")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import os.path, re as r\n", "import os/B-MODULE ./I-MODULE path/I-MODULE , re/B-MODULE as r"),
        ("from ..a.b import c, d\n", "from ./B-MODULE ./I-MODULE a/I-MODULE ./I-MODULE b/I-MODULE import c/B-IMPORTED , d/B-IMPORTED"),
        ("async def f(a, *b, c=1): pass\n", "async def f/B-FUNCTION ( a/B-PARAMETER , * b/B-PARAMETER , c/B-PARAMETER = 1 ) : pass"),
        ("@property\ndef f(self): pass\n", "def f/B-FUNCTION ( self/B-PARAMETER ) : pass"),
        ("class A(b.C, metaclass=D): pass\n", "class A/B-CLASS ( b/B-BASE ./I-BASE C/I-BASE , metaclass/B-ARGUMENT = D ) : pass"),
        ("self.x = a.b.c(y.z, k=2)\n", "self/B-TARGET ./I-TARGET x/I-TARGET = a/B-CALL ./I-CALL b/I-CALL ./I-CALL c/I-CALL ( y/B-ATTRIBUTE ./I-ATTRIBUTE z/I-ATTRIBUTE , k/B-ARGUMENT = 2 )"),
        ("x = f(1)[2].g( )\n", "x/B-TARGET = f/B-CALL ( 1 ) [ 2 ] . g/B-CALL ( )"),
        ("raise a.B(c) from d\n", "raise a/B-EXCEPTION ./I-EXCEPTION B/I-EXCEPTION ( c ) from d"),
    ],
)
def test_names_are_what_the_tree_says(tmp_path, text, expected):
    assert tagged(tmp_path, text) == [expected]


def test_statements_over_lines_and_what_does_not_suit(tmp_path):
    text = 'x = (1,  # a comment\n     2)\n\nif x:\n    y = f"{x} words"\n    z = "long words, " * 3 + "' + "w" * 50 + '"\n    return_ = [x]\n'
    assert tagged(tmp_path, text) == ["x/B-TARGET = ( 1 , 2 )", "return_/B-TARGET = [ x ]"]
    assert tagged(tmp_path, "x = (1,\n") == tagged(tmp_path, "x = y = 'größe'\n") == []


def test_rows_are_sentences_of_many_files(source):
    frame = source.scan()
    assert len(frame) == 150 and frame["group"].nunique() >= 20 and frame["key"].is_unique and not frame["label"].notna().any()
    rows = [json.loads(raw.data) for raw in source.read(frame["key"].tolist())]
    assert all(4 <= len(row["words"]) == len(row["tags"]) <= 60 for row in rows)
    assert len({tuple(row["words"]) for row in rows}) == 150
    tags = {tag for row in rows for tag in row["tags"]}
    assert {"B-CALL", "I-CALL", "B-FUNCTION", "B-PARAMETER", "O"} <= tags and Scheme.of(tags).prefixed
    for row in rows:
        before = "O"
        for tag in row["tags"]:  # in IOB2 what goes on has begun
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            before = tag


def test_a_row_is_that_of_its_key(source):
    key = source.scan()["key"][0]
    path, line = key.split(":")
    text = (standard_library() / path).read_text().splitlines()
    words = json.loads(next(source.read([key])).data)["words"]
    assert text[int(line) - 1].strip().startswith(words[0]) and ast.parse("\n".join(text))
    assert "no statement 'none.py:1'" in next(source.read(["none.py:1"])).reason


def test_the_rows_are_the_same_in_another_process(source):
    script = """
from ml.files import digest
from ml.sources.python_tokens import PythonTokens
source = PythonTokens(PythonTokens.Options(statements=150))
print(digest(*source.scan()["key"]), source.fingerprint())
"""
    from ml.files import digest

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert done.stdout.split() == [digest(*source.scan()["key"]), source.fingerprint()]
    assert PythonTokens(PythonTokens.Options(statements=151)).fingerprint() != source.fingerprint()
