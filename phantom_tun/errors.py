"""The exception tree.

Three questions tell the branches apart: did *we or the user* ask for something wrong
(:class:`UsageError`), did a *peer* misbehave (:class:`PeerError`), or did *the world* fail
(:class:`WorldError`)? Messages are written for the person who will read them and never contain
secrets or the addresses of other people.
"""

from __future__ import annotations


class PhantomError(Exception):
    """Base of everything this package raises on purpose."""


# --- we, or the user ---------------------------------------------------------------------------


class UsageError(PhantomError):
    """The caller asked for something that can't be done; the message says what to do instead."""


class ConfigError(UsageError):
    """A configuration file, network profile, key file or state directory is unusable."""


# --- a peer ------------------------------------------------------------------------------------


class PeerError(PhantomError):
    """A peer sent something the protocol forbids. The link it came over is closed or ignored."""


class WireError(PeerError):
    """Bytes from the network don't parse. The one exception parsers of network input raise."""


class CryptoError(PeerError):
    """A signature, seal, tag or hash did not verify."""


class RecordRefused(PeerError):  # noqa: N818 - reads as what happened
    """A network-database record breaks a storage rule; ``str()`` names the rule."""


class ProtocolViolation(PeerError):  # noqa: N818
    """A well-formed message came at a time, from a sender or with a value that is not allowed."""


# --- the world ---------------------------------------------------------------------------------


class WorldError(PhantomError):
    """Something outside failed: a link broke, a node is gone, a deadline passed, no capacity."""


class LinkBroken(WorldError):  # noqa: N818
    """A link or tunnel ended without saying so; what was in flight is lost."""


class DeadlineExpired(WorldError):  # noqa: N818
    """Nothing came in the time allowed."""


class CapacityExceeded(WorldError):  # noqa: N818
    """A bounded table, queue or pool is full."""


class PathUnavailable(WorldError):  # noqa: N818
    """No usable routing path or ready tunnel of the kind asked for."""


# --- what a connection attempt can come to (mirrors TCP/IP) --------------------------------------


class ConnectFailed(WorldError):  # noqa: N818
    """Base of the outcomes of a connection attempt towards an AP address."""


class Refused(ConnectFailed):
    """The port is exposed but nothing listens behind it: the application sees RST."""


class Filtered(ConnectFailed):
    """The port isn't exposed, or not to us, or nobody answered: the application sees silence."""


class NoAnswer(Filtered):
    """Nobody answered: as silent as a filtered port, but the far node may not be there at all."""


class Unreachable(ConnectFailed):
    """No such AP address, or no route to it: the application sees ICMP host unreachable."""


class StreamReset(WorldError):  # noqa: N818
    """The far application (or its node) reset the connection: the near one sees RST."""
