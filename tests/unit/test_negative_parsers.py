"""What strangers can send to make a library under a parser raise something of its own. Whatever it
is has to come out as one of our errors: anything else would end the daemon."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import ssl
import time
import warnings
from pathlib import Path

import pytest
from cryptography.utils import CryptographyDeprecationWarning

from phantom_tun import config, profile
from phantom_tun.control.schema import ControlError, decode_reply, decode_request
from phantom_tun.crypto.certificates import callee_context, caller_context
from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.sealing import SEALING_PUBLIC_LEN, SealingKey, seal
from phantom_tun.crypto.signing import verify
from phantom_tun.crypto.x509 import check_certificate, make_certificate
from phantom_tun.errors import ConfigError, CryptoError, PeerError, WireError
from phantom_tun.ids import PublicKey
from phantom_tun.net.links.buffers import HEADER_LEN, POOL
from phantom_tun.netdb import cachefile, holdings
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.path.guards import GuardSet
from phantom_tun.testing.record_factory import NETWORK, ApMaker
from phantom_tun.tunnel.answer import callee_wrap, caller_wrap
from phantom_tun.tunnel.channel import CalleeHandshake, CallerHandshake
from phantom_tun.wire.netdb import MAX_ANSWER_LEN, MAX_CALL_LEN, decode_answer, decode_call
from phantom_tun.wire.records import APKeyRecord, decode
from phantom_tun.wire.session import MAX_DATA, Answer, FrameKind, Outcome, Protocol, Request

# --- nesting -------------------------------------------------------------------------------------

NESTS = {"arrays": b"\x91", "maps": b"\x81\xc0"}
"""MessagePack: an array of one element, a map of one whose key is nil."""


def nested(head: bytes, nest: bytes, length: int) -> bytes:
    """``head``, and then as many containers inside one another as fit into ``length`` bytes."""
    depth = (length - len(head) - 1) // len(nest)
    return head + nest * depth + b"\xc0"


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_a_deeply_nested_netdb_message_is_only_malformed(nest):
    # A message may be longer than its type knows; what is too much is skipped, level by level.
    call = nested(b"\x94\x06\xc4\x04" + bytes(4) + b"\xc2", nest, MAX_CALL_LEN)
    with pytest.raises(WireError):
        decode_call(call)
    answer = nested(b"\x93\x69\x90", nest, MAX_ANSWER_LEN)
    with pytest.raises(WireError):
        decode_answer(answer)


def test_a_deeply_nested_record_is_only_malformed():
    record = ApMaker(1).record().encoded
    longer = bytes([record[0] + 1]) + record[1:]
    with pytest.raises(WireError):
        decode(APKeyRecord, nested(longer, NESTS["arrays"], APKeyRecord.MAX_LEN))


def test_a_deeply_nested_control_message_is_only_invalid():
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(ControlError):
        decode_request(b'{"version":1,"request":{"type":"get_status","x":' + deep + b"}}")
    with pytest.raises(ControlError):
        decode_reply(b'{"type":"result","value":' + deep + b"}")


# --- certificates --------------------------------------------------------------------------------

OWN, OTHER = (make_certificate("localhost", time.time()) for _ in range(2))

KEY_ALGORITHM = bytes.fromhex("06072a8648ce3d0201")
CURVE = bytes.fromhex("06082a8648ce3d030107")
VERSION = bytes.fromhex("a003020102")
TWISTS = {
    "key algorithm": (KEY_ALGORITHM, bytes.fromhex("06072a8648ce3d020f")),
    "curve": (CURVE, bytes.fromhex("06082a8648ce3d03017f")),
    "version": (VERSION, bytes.fromhex("a003020122")),
    "length": (bytes.fromhex("3082"), bytes.fromhex("3083")),
}


@pytest.mark.parametrize(("old", "new"), TWISTS.values(), ids=TWISTS)
def test_a_certificate_of_an_unknown_kind_is_refused(old, new):
    der = OTHER.der.replace(old, new)
    assert der != OTHER.der
    with pytest.raises(CryptoError):
        check_certificate(der)
    with pytest.raises(CryptoError):
        callee_context(OWN, der)


def test_a_certificate_that_only_openssl_refuses_is_refused():
    """The two libraries disagree about some certificates."""
    rng = random.Random(3)
    disagreed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for _ in range(400):
            der = bytearray(OTHER.der)
            der[rng.randrange(len(der))] = rng.randrange(256)
            try:
                check_certificate(bytes(der))
            except CryptoError:
                continue
            try:
                callee_context(OWN, bytes(der))
            except CryptoError as error:
                disagreed += isinstance(error.__cause__, ssl.SSLError)
    assert disagreed


# --- keys ----------------------------------------------------------------------------------------


def test_no_sealing_key_however_strange_raises_anything_else():
    rng = random.Random(4)
    good = SealingKey.generate().public
    for _ in range(200):
        public = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            public[rng.randrange(len(public))] = rng.randrange(256)
        with contextlib.suppress(CryptoError):
            seal(b"x", bytes(public), "test", b"network")
    for public in (bytes(SEALING_PUBLIC_LEN), b"\xff" * SEALING_PUBLIC_LEN, good[:-32] + bytes(32)):
        with pytest.raises(CryptoError):
            seal(b"x", public, "test", b"network")


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
@pytest.mark.parametrize("signature", [bytes(64), b"\1" + bytes(63)])
def test_a_key_of_small_order_signs_nothing(key, signature):
    with pytest.raises(CryptoError):
        verify(key, signature, "test", b"anything")


# --- TLS -----------------------------------------------------------------------------------------

REQUEST = Request(
    protocol=Protocol.TCP,
    destination=ipaddress.IPv4Address("241.2.3.4"),
    port=443,
    caller=PublicKey(b"k" * 32),
    certificate=OTHER.der,
    client_hello=b"",
    time=0,
    nonce=b"n" * 32,
    secret=b"s" * 32,
    session_id=b"i" * 16,
)
ANSWER = Answer(Outcome.CONNECTED, b"r" * 32, b"flight")


class Chatty:
    """What TLS wants to send when the peer has asked it for a change of keys: 27 bytes more."""

    def __init__(self, bio: ssl.MemoryBIO) -> None:
        self._bio = bio
        self._first = True

    def read(self) -> bytes:
        data = self._bio.read()
        if self._first:
            data = bytes(27) + data
            self._first = False
        return data


def test_tls_can_not_be_made_to_write_past_the_end_of_a_frame():
    caller = CallerHandshake(caller_context(OTHER))
    callee = CalleeHandshake(callee_context(OWN, OTHER.der), caller.hello)
    channel = caller.finish(callee.flight, OWN.hash, caller_wrap(REQUEST, ANSWER))
    callee.open(OTHER.hash, callee_wrap(REQUEST, ANSWER))
    view = POOL.take().view
    channel.flush(view, HEADER_LEN)
    largest = memoryview(bytes(MAX_DATA))
    channel.encode(view, HEADER_LEN, FrameKind.DATA, largest)
    channel._outgoing = Chatty(channel._outgoing)
    with pytest.raises(CryptoError):
        channel.encode(view, HEADER_LEN, FrameKind.DATA, largest)


def test_no_client_hello_however_strange_raises_anything_else():
    rng = random.Random(5)
    context = callee_context(OWN, OTHER.der)
    hello = CallerHandshake(caller_context(OTHER)).hello
    for _ in range(150):
        changed = bytearray(hello)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        with contextlib.suppress(PeerError):
            CalleeHandshake(context, bytes(changed[: rng.choice([len(hello), 99])]))


# --- text ----------------------------------------------------------------------------------------

DEEP = b"[" * 3000


@pytest.mark.parametrize("bad", [b"\xff", DEEP, b'"\\ud800"'], ids=["no text", "deep", "half"])
def test_text_that_is_none_is_only_invalid(bad):
    """Libraries raise errors of Python's own for it."""
    with pytest.raises(ControlError):
        decode_request(b'{"version":1,"request":{"type":"sta' + bad + b'"}}')
    with pytest.raises(ControlError):
        decode_reply(b'{"type":"result","value":' + bad + b"}")
    with pytest.raises(ConfigError):
        GuardSet.decode(b'{"guards":[],"x":' + bad + b"}")


@pytest.mark.parametrize(
    "bad", [b"x = " + DEEP, b"x = " + b"9" * 5000, b"\xff"], ids=["deep", "long", "no text"]
)
def test_toml_that_no_parser_can_take_is_only_wrong(bad):
    with pytest.raises(ConfigError):
        config.parse(bad, source=Path("/etc/phantom-tun.toml"))
    with pytest.raises(ConfigError):
        profile.parse(bad, source="profile")


def test_a_file_of_an_earlier_run_that_is_damaged_is_only_damaged():
    magic = b"\x93\xa1\xff"
    verifier = Verifier(NETWORK)
    with pytest.raises(WireError):
        cachefile.load(magic + h("node cache", magic), verifier, 0.0)
    with pytest.raises(WireError):
        holdings.load(magic + h("holdings", magic), verifier, ApStore(NETWORK), 0.0)
