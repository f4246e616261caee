"""What decoding libraries raise for bytes that aren't what they should be."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""By msgspec and tomllib. Text that isn't UTF-8 and numbers without end are ValueErrors of Python's
own, values nested without end a RecursionError."""
