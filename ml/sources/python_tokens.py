"""Statements of Python's own library, whose names bear tags that the syntax tree gives them: real tagged text on any machine."""

from __future__ import annotations

import ast
import io
import json
import platform
import re
import tokenize
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import Raw
from ml.files import digest
from ml.python_files import STANDARD, modules, parsed, standard_library

FEWEST, MOST = 4, 60
"""Words of a statement."""
LONGEST = 40
"""Characters of a word: longer ones are prose between quotes."""
FILES, EACH = 50, 5
"""Files at least, where each has enough, so that no few make up the data; and statements of one, however few are wanted."""
WORDS = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
PASSED = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
FORMATTED = re.compile("[rR]?[fF][rR]?[\"']")  # one token until Python 3.11, many after

Place = tuple[int, int]
"""Line, from 1, and column, from 0."""


class PythonTokens:
    """Statements of the standard library, a tag a word in IOB2: modules, functions, classes, parameters, calls, attributes ... No download, nothing is imported.

    The same version of Python gives the same rows. Statements of one file are a group: they stay on one side of a split.
    """

    class Options(contracts.Options):
        statements: int = Field(5_000, ge=100, le=50_000, description="Statements at most.")

    def __init__(self, options: PythonTokens.Options) -> None:
        self.options = options

    def scan(self) -> pd.DataFrame:
        rows = [{"key": key, "label": None, "split": None, "group": key.partition(":")[0], "slice": None} for key in _rows(self.options.statements)]
        return pd.DataFrame(rows, dtype=object)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        """JSON, {"words": [...], "tags": [...]}, of each statement."""
        rows = _rows(self.options.statements)
        for key in keys:
            words = rows.get(key)
            if words is None:
                yield Raw(None, f"there is no statement {key!r} in this version of Python")
            else:
                yield Raw(json.dumps({"words": [word for word, _ in words], "tags": [tag for _, tag in words]}).encode())

    def fingerprint(self) -> str:
        return digest("python-tokens", self.options.model_dump_json(), platform.python_version())


@cache
def _rows(statements: int) -> dict[str, list[tuple[str, str]]]:
    """Words with their tags by key, copies dropped. Read once: it takes seconds."""
    found: dict[str, list[tuple[str, str]]] = {}
    seen: set[tuple[str, ...]] = set()
    root = standard_library()
    for path in modules(STANDARD, root):
        own = {}
        for line, words in _statements(root / path):
            text = tuple(word for word, _ in words)
            if text not in seen:
                seen.add(text)
                own[f"{path}:{line}"] = words
        found |= {key: own[key] for key in sorted(sorted(own, key=digest)[: max(EACH, statements // FILES)])}
        if len(found) >= statements:
            break
    return dict(list(found.items())[:statements])


def _statements(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """The line and the tagged words of each statement of a file that suits; none where it cannot be parsed."""
    try:
        tree, source = parsed(path), path.read_text("ascii")  # so that the tree's columns, in bytes, are characters
        tokens = [one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type not in PASSED]
    except (OSError, SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return
    tags, start = _tags(tree, tokens), 0
    for end in [place for place, token in enumerate(tokens) if token.type == tokenize.NEWLINE]:
        words = tokens[start:end]
        if _suits(words):
            yield words[0].start[0], [(word.string, tag) for word, tag in zip(words, tags[start:end], strict=True)]
        start = end + 1


def _suits(words: list[tokenize.TokenInfo]) -> bool:
    return FEWEST <= len(words) <= MOST and all(word.type in WORDS and len(word.string) <= LONGEST and not FORMATTED.match(word.string) for word in words)


def _tags(tree: ast.Module, tokens: list[tokenize.TokenInfo]) -> list[str]:
    """The tag of each token. Where two spans share one, the outer counts."""
    tags, starts = ["O"] * len(tokens), [token.start for token in tokens]
    for start, end, kind in _spans(tree, tokens, starts):
        inside = range(bisect_left(starts, start), bisect_left(starts, end))
        if all(tags[place] == "O" for place in inside):
            for place in inside:
                tags[place] = f"{'B' if place == inside[0] else 'I'}-{kind}"
    return tags


def _spans(tree: ast.Module, tokens: list[tokenize.TokenInfo], starts: list[Place]) -> Iterator[tuple[Place, Place, str]]:
    """What the tree knows the kind of, the outer before the inner."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        if not isinstance(node, ast.JoinedStr):  # before Python 3.12 the places within are wrong
            waiting.extend(ast.iter_child_nodes(node))
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                place = bisect_left(starts, (node.lineno, node.col_offset)) + 1 + isinstance(node, ast.AsyncFunctionDef)
                yield starts[place], tokens[place].end, "CLASS" if isinstance(node, ast.ClassDef) else "FUNCTION"
                yield from (_whole(base, "BASE") for base in getattr(node, "bases", ()) if _dotted(base))
            case ast.Import(names=names):
                yield from (_named(one, one.name, "MODULE") for one in names)
            case ast.ImportFrom(names=names):
                place = bisect_left(starts, (node.lineno, node.col_offset)) + 1
                yield starts[place], next(one.start for one in tokens[place:] if one.string == "import"), "MODULE"
                yield from (_named(one, one.name, "IMPORTED") for one in names)
            case ast.arg(arg=name):
                yield _named(node, name, "PARAMETER")
            case ast.keyword(arg=str(name)):
                yield _named(node, name, "ARGUMENT")
            case ast.ExceptHandler(type=ast.expr() as caught):
                yield from (_whole(one, "EXCEPTION") for one in getattr(caught, "elts", [caught]) if _dotted(one))
            case ast.Raise(exc=ast.Call(func=raised) | (ast.Name() as raised)) if _dotted(raised):
                yield _whole(raised, "EXCEPTION")
            case ast.Call(func=called) if _dotted(called):
                yield _whole(called, "CALL")
            case ast.Call(func=ast.Attribute(attr=name) as called):
                end = called.end_lineno, called.end_col_offset
                yield (end[0], end[1] - len(name)), end, "CALL"
            case ast.Name(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()) if _dotted(node):
                yield _whole(node, "TARGET")
            case ast.Attribute() if _dotted(node):
                yield _whole(node, "ATTRIBUTE")


def _dotted(node: ast.AST) -> bool:
    """Whether a node is names with dots between them."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _whole(node: ast.expr, kind: str) -> tuple[Place, Place, str]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), kind


def _named(node: ast.alias | ast.arg | ast.keyword, name: str, kind: str) -> tuple[Place, Place, str]:
    return (node.lineno, node.col_offset), (node.lineno, node.col_offset + len(name)), kind
