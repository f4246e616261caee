"""What decoding libraries raise for bytes that aren't what they should be, and say to people."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""By msgspec and tomllib. Text that isn't UTF-8 and numbers without end are ValueErrors of Python's
own, values nested without end a RecursionError."""

_WRONG = re.compile(r"(?:Expected|Invalid enum value) .* - at `\$\.(?P<at>[^`\[]+).*`", re.DOTALL)


def in_words(message: str, kind: type[msgspec.Struct]) -> str | None:
    """What msgspec says of a wrong value in a file, as the file's author would: ``paths.exit_hops:
    must be a whole number from 0 to 8``. ``None`` if it says something else.

    :param kind: what the whole file is.
    """
    match = _WRONG.fullmatch(message)
    if match is None:
        return None
    hint: Any = kind
    for key in match["at"].split("."):
        hint = get_type_hints(hint, include_extras=True)[key]
    return f"{match['at']}: must be {_allowed(hint)}"


def _allowed(hint: Any) -> str:
    bare, limits = _unwrapped(hint)
    if get_origin(bare) is Literal:
        return f"one of {', '.join(repr(value) for value in get_args(bare))}"
    if get_origin(bare) in {tuple, list}:
        count = _range(limits.get("min_length", 0), limits.get("max_length"))
        _, of_each = _unwrapped(get_args(bare)[0])
        return f"a list{count and f' ({count.strip()})'} of texts in quotes{_pattern(of_each)}"
    if bare is bool:
        return "true or false"
    if bare is int:
        return f"a whole number{_range(limits.get('ge'), limits.get('le'))}"
    if bare is Path:
        return "a path in quotes"
    if inspect.isclass(bare) and issubclass(bare, msgspec.Struct):
        return "a section"
    return f"text in quotes{_pattern(limits)}"


def _unwrapped(hint: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its limits, and these; of ``T | None``, T."""
    limits: dict[str, Any] = {}
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            for meta in hint.__metadata__:
                limits |= {
                    name: getattr(meta, name)
                    for name in ("ge", "le", "min_length", "max_length", "pattern")
                    if getattr(meta, name) is not None
                }
            hint = hint.__origin__
        elif origin in {Union, types.UnionType}:
            hint = next(each for each in get_args(hint) if each is not types.NoneType)
        else:
            return hint, limits


def _range(low: int | None, high: int | None) -> str:
    if low is None:
        return "" if high is None else f" up to {high}"
    return f", {low} or more" if high is None else f" from {low} to {high}"


def _pattern(limits: dict[str, Any]) -> str:
    return f" that matches {limits['pattern']}" if "pattern" in limits else ""
