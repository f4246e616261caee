"""Fixed lengths that more than one layer relies on, in bytes (docs/spec/wire.md, "Sizes").

Everything an observer or a relay could measure is one of these, whatever it carries.
"""

PACKAGE_LEN = 8192
"""An init, reply or result package of a routing tunnel, AES-GCM tag included."""

SEALED_REQUEST_LEN = 6144
"""A sealed connection request."""

ANSWER_LEN = 6144
"""The callee's locked answer."""

OPENING_LEN = 64
"""What opens a use of a bulk link."""

NETDB_BODY_LEN = 7900
"""The most that a netdb call or its answer may take inside a package."""
