"""Structured logs on standard error, with a rule for what may not be in them.

At info and above a log is something people paste into bug reports: there, whatever looks like an
IP address or an identifier is replaced, unless its key begins with ``own_`` (this node's own).
Raw bytes are never written at any level, since keys are bytes.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import structlog

from phantom_tun.config import LogConfig

HIDDEN = "[hidden]"
OWN_PREFIX = "own_"
_UNTOUCHED = frozenset({"timestamp", "level", "logger"})
_WORD = re.compile(r"[0-9A-Za-z.:%]*[0-9A-Za-z]")
_IDENTIFIER = re.compile(r"[0-9a-fA-F]{16,}")
_ADDRESS_AND_PORT = re.compile(r"([0-9.]+):[0-9]+")
_PRIVATE_LEVELS = frozenset({"info", "warning", "error", "critical", "exception"})


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Set up logging for the whole process; ``stream`` is standard error unless given."""
    output = sys.stderr if stream is None else stream
    renderer: structlog.typing.Processor
    if config.json:
        renderer = structlog.processors.JSONRenderer()
    else:
        # The default formatter of exceptions prints local variables, which may be keys.
        renderer = structlog.dev.ConsoleRenderer(
            colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )


def redact(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A structlog processor: the rule above."""
    private = event.get("level") in _PRIVATE_LEVELS
    return {
        key: value if key in _UNTOUCHED else _cleaned(value, private and not _is_own(key))
        for key, value in event.items()
    }


def _is_own(key: str) -> bool:
    return key.startswith(OWN_PREFIX)


def _cleaned(value: Any, private: bool) -> Any:
    match value:
        case bool() | int() | float() | None:
            return value
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case Mapping():
            return {
                str(key): _cleaned(item, private and not _is_own(str(key)))
                for key, item in value.items()
            }
        case str():
            return _WORD.sub(_hide, value) if private else value
        case Sequence() | set() | frozenset():
            return [_cleaned(item, private) for item in value]
        case _:
            return _cleaned(str(value), private)


def _hide(match: re.Match[str]) -> str:
    word = match.group()
    return HIDDEN if _IDENTIFIER.search(word) or _is_address(word) else word


def _is_address(word: str) -> bool:
    if with_port := _ADDRESS_AND_PORT.fullmatch(word):
        word = with_port[1]
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True
