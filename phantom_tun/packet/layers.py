"""Scapy's packet classes, imported when the first packet needs them: the import takes a fifth of a
second and 7 MB, which relays and commands never pay. ``scapy.all`` would cost several times that.

Scapy also reads the names of all makers of network cards, which takes 16 MB more, and keeps a copy
of them in its user's cache directory. Nobody here asks for one, so it finds an empty list and no
directory.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

_NAME_LISTS = ("scapy.libs.manuf", "scapy.libs.bluetoothids")


@functools.cache
def load_layers() -> SimpleNamespace:
    """Scapy's IP, IPv6, TCP, UDP, ICMP and ICMPv6 classes, by their scapy names."""
    with _without_names():
        inet = importlib.import_module("scapy.layers.inet")
        inet6 = importlib.import_module("scapy.layers.inet6")
        packet = importlib.import_module("scapy.packet")
    return SimpleNamespace(
        IP=inet.IP,
        TCP=inet.TCP,
        UDP=inet.UDP,
        ICMP=inet.ICMP,
        IPv6=inet6.IPv6,
        ICMPv6EchoRequest=inet6.ICMPv6EchoRequest,
        ICMPv6DestUnreach=inet6.ICMPv6DestUnreach,
        Raw=packet.Raw,
        NoPayload=packet.NoPayload,
    )


@contextmanager
def _without_names() -> Iterator[None]:
    """Let the lists of names be empty for whoever imports them meanwhile."""
    stand_ins = {name: ModuleType(name) for name in _NAME_LISTS if name not in sys.modules}
    for stand_in in stand_ins.values():
        stand_in.DATA = ""  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("scapy.main").SCAPY_CACHE_FOLDER = None  # type: ignore[attr-defined]
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
