"""Whether a service that is exposed is there."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from phantom_tun.control.model import Protocol
from phantom_tun.view.listening import hint

AP4, AP6 = ipaddress.ip_address("127.0.0.2"), ipaddress.ip_address("2001:2f:aaaa::1")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0", ""),  # noqa: S104 - what is tested
        ("::", ""),
        ("127.0.0.2", ""),
        ("127.0.0.1", "does so at 127.0.0.1 only: let it listen at 127.0.0.2 or 2001:2f:aaaa::1"),
        ("::1", "does so at ::1 only"),
        ("::ffff:127.0.0.2", ""),
    ],
)
def test_where_a_service_listens_is_seen(protocol: Protocol, address: str, said: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as service:
        try:
            service.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        port = service.getsockname()[1]
        if protocol == "tcp":
            assert hint("tcp", port, [AP4, AP6]).startswith("nothing listens on local port")
            service.listen()
        assert said in hint(protocol, port, [AP4, AP6])
        assert bool(said) is bool(hint(protocol, port, [AP4, AP6]))


@pytest.mark.parametrize("content", [None, "head\nnonsense\n", "head\n0: 00:XY x 0A\n"])
def test_what_the_kernel_doesnt_tell_is_no_hint(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tcp").write_text(content)
    assert hint("tcp", 80, [AP4], tables=tmp_path) == ""
