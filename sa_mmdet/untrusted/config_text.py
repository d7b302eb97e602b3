"""The text of a config that a file records, read as literals: what MMEngine writes into checkpoints and work dirs.

A config that the user names is a program, and MMEngine runs it. A text that came with a file is not: it may hold
assignments of numbers, text, None, booleans and containers of them, which is all that MMEngine ever writes there.
"""

import ast
import io
import keyword
import token as kinds
import tokenize
from collections.abc import Callable
from typing import Any

from mmengine.config import Config

from .errors import RefusedFileError
from .records import DEEPEST

LONGEST = 1 << 20  # characters; MMDetection's longest has 40,000
_CONSTANTS = {"None": None, "True": True, "False": False, "inf": float("inf"), "nan": float("nan")}
_IGNORED = (kinds.NL, kinds.COMMENT, kinds.ENCODING, tokenize.ENDMARKER)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def literal_config(text: Any, source: object) -> Config:
    """Read the text of a config without running it.

    Args:
        text: What :attr:`mmengine.config.Config.pretty_text` gives.
        source: Where the text is from, which errors name.

    Raises:
        RefusedFileError: It is something else; the message says in which line.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise RefusedFileError(f"{source}: its config is not a text of at most {LONGEST} characters")
    try:
        return Config(_Parser(text).assignments())
    except RefusedFileError as error:
        raise RefusedFileError(f"{source}: its config {error}") from error
    except (SyntaxError, tokenize.TokenError, KeyError, ValueError, TypeError) as error:
        raise RefusedFileError(f"{source}: its config cannot be read ({type(error).__name__})") from error


class _Parser:
    """Recursive descent over Python's tokens; its depth is limited, which that of Python's own parser is not."""

    def __init__(self, text: str):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self._tokens = [one for one in tokens if one.type not in _IGNORED]
        self._position = 0
        self._depth = 0

    def assignments(self) -> dict[str, Any]:
        found = {}
        while self._position < len(self._tokens):
            if self._peek().type == kinds.NEWLINE:
                self._position += 1
                continue
            name = self._name()
            self._expect("=")
            found[name] = self._value()
            if self._position < len(self._tokens) and self._peek().type != kinds.NEWLINE:
                raise self._refused()
        return found

    def _peek(self) -> tokenize.TokenInfo:
        if self._position >= len(self._tokens):
            raise RefusedFileError("ends in the middle of a value")
        return self._tokens[self._position]

    def _next(self) -> tokenize.TokenInfo:
        found = self._peek()
        self._position += 1
        return found

    def _skip(self, text: str) -> bool:
        found = self._position < len(self._tokens) and self._tokens[self._position].string == text
        self._position += found
        return found

    def _expect(self, text: str) -> None:
        if not self._skip(text):
            raise self._refused()

    def _refused(self) -> RefusedFileError:
        found = self._peek()
        return RefusedFileError(
            f"is more than names and literals, which is refused and was not run: line {found.start[0]}, at "
            f"{found.string[:40]!r}"
        )

    def _name(self) -> str:
        found = self._peek()
        if found.type != kinds.NAME or keyword.iskeyword(found.string):
            raise self._refused()
        return self._next().string

    def _value(self) -> Any:
        if self._depth >= DEEPEST:
            raise RefusedFileError(f"is nested more than {DEEPEST} levels deep")
        self._depth += 1
        try:
            return self._one()
        finally:
            self._depth -= 1

    def _one(self) -> Any:
        found = self._peek()
        if found.type == kinds.STRING:
            return self._text()
        if found.type == kinds.NUMBER or found.string in ("-", "+"):
            return self._number()
        if found.type == kinds.NAME and found.string == "dict":
            self._position += 1
            self._expect("(")
            return self._dict_call()
        if found.type == kinds.NAME and found.string in _CONSTANTS:
            return _CONSTANTS[self._next().string]
        if self._skip("["):
            return self._sequence("]", self._value)
        if self._skip("{"):
            return self._braces()
        if self._skip("("):
            return self._parentheses()
        raise self._refused()

    def _text(self) -> Any:
        parts = []
        while self._position < len(self._tokens) and self._peek().type == kinds.STRING:
            try:
                parts.append(ast.literal_eval(self._peek().string))  # one token: a formatted string is not a literal
            except (ValueError, SyntaxError) as error:
                raise self._refused() from error
            self._position += 1
        if len({type(part) for part in parts}) > 1:
            raise self._refused()
        return type(parts[0])().join(parts)

    def _number(self) -> Any:
        sign = {"-": -1, "+": 1}.get(self._peek().string)
        self._position += sign is not None
        found = self._peek()
        value: float | complex
        if found.type == kinds.NAME and found.string in ("inf", "nan"):
            value = float(found.string)
        elif found.type == kinds.NUMBER:
            value = ast.literal_eval(found.string)
        else:
            raise self._refused()
        self._position += 1
        return value if sign is None else sign * value

    def _sequence(self, closing: str, part: Callable[[], Any]) -> list[Any]:
        found = []
        while not self._skip(closing):
            found.append(part())
            if not self._skip(","):
                self._expect(closing)
                break
        return found

    def _dict_call(self) -> dict[Any, Any]:
        """``dict(a=1)``, or ``dict({"a b": 1})``, which MMEngine writes for keys that are not names."""
        if not self._skip("{"):
            return dict(self._sequence(")", self._keyword))
        found = self._braces()
        self._expect(")")
        if not isinstance(found, dict):
            raise self._refused()
        return found

    def _keyword(self) -> tuple[str, Any]:
        name = self._name()
        self._expect("=")
        return name, self._value()

    def _pair(self) -> tuple[Any, Any]:
        key = self._value()
        self._expect(":")
        return self._hashable(key), self._value()

    def _hashable(self, key: Any) -> Any:
        if isinstance(key, list | dict | set):
            raise self._refused()
        return key

    def _braces(self) -> Any:
        begin = self._position
        if self._skip("}"):
            return {}
        self._value()
        is_dict = self._skip(":")
        self._position = begin
        if is_dict:
            return dict(self._sequence("}", self._pair))
        return set(self._sequence("}", lambda: self._hashable(self._value())))

    def _parentheses(self) -> Any:
        if self._skip(")"):
            return ()
        first = self._value()
        if self._skip(")"):
            return first
        self._expect(",")
        return (first, *self._sequence(")", self._value))
