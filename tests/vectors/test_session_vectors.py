"""The bytes of tests/vectors/session.json: what another implementation has to arrive at."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phantom_tun.crypto.hashes import hkdf
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.ids import NetworkId
from phantom_tun.tunnel.answer import callee_wrap, caller_wrap, lock_answer, unlock_answer
from phantom_tun.tunnel.early import EarlyOpener, EarlySealer, lock_early
from phantom_tun.tunnel.request import open_request, seal_request
from phantom_tun.tunnel.resumption import Resuming, check_resumption
from phantom_tun.wire.session import (
    NO_TICKET,
    Answer,
    Opening,
    Outcome,
    Protocol,
    Request,
    Ticket,
)

VECTORS = json.loads((Path(__file__).parent / "session.json").read_text())
INPUTS: dict[str, Any] = VECTORS["inputs"]


def given(name: str) -> bytes:
    return bytes.fromhex(INPUTS[name])


CALLER = SigningKey(given("caller_seed"))
TARGET = SigningKey(given("target_seed"))
KEY = SealingKey(given("request_key_seed"))
NETWORK = NetworkId(given("network_id"))
TICKET = Ticket(given("ticket"), given("ticket_secret"))
REQUEST = Request(
    protocol=Protocol(INPUTS["protocol"]),
    destination=ipaddress.IPv4Address(INPUTS["destination"]),
    port=INPUTS["port"],
    caller=CALLER.public,
    certificate=given("certificate"),
    client_hello=given("client_hello"),
    time=INPUTS["time"],
    nonce=given("nonce"),
    secret=given("secret"),
    session_id=given("session_id"),
    epoch=INPUTS["epoch"],
    source_ap4=ipaddress.IPv4Address(INPUTS["source_ap4"]),
    source_port=INPUTS["source_port"],
    ephemeral=INPUTS["ephemeral"],
    keep=INPUTS["keep"],
    resumes=INPUTS["resumes"],
    ticket=TICKET.number,
    early=bytes.fromhex(VECTORS["early"]),
)
ANSWER = Answer(Outcome.CONNECTED, given("callee_random"), given("flight"), took_early=True)


def test_the_request_has_this_layout() -> None:
    content = given("certificate") + given("client_hello") + bytes.fromhex(VECTORS["early"])
    packed = REQUEST.pack()
    assert packed[:175].hex() == VECTORS["request_head"]
    assert packed[175 : 175 + len(content)] == content
    assert not any(packed[175 + len(content) :])


def test_the_opening_has_this_layout() -> None:
    opening = Opening(
        REQUEST.session_id,
        REQUEST.time,
        REQUEST.destination,
        REQUEST.port,
        REQUEST.source_port,
        given("early_data"),
    )
    assert opening.pack().rstrip(b"\0").hex() == VECTORS["opening"]


def test_the_resumption_is_this_one() -> None:
    secret, received = given("resume_secret"), INPUTS["resume_received"]
    resuming = Resuming(secret, INPUTS["resume_epoch"], received)
    said = resuming.say(REQUEST.session_id, REQUEST.nonce)
    assert said.hex() == VECTORS["resumption"]
    resumed = replace(REQUEST, keep=False, epoch=resuming.epoch, ticket=NO_TICKET, early=said)
    assert check_resumption(Request.unpack(resumed.pack()), secret) == received


def test_the_early_data_are_these() -> None:
    locked = lock_early(TICKET, REQUEST.secret, REQUEST.nonce, given("early_data"))
    assert locked.hex() == VECTORS["early"]


def test_the_early_records_are_these() -> None:
    sealer = EarlySealer(TICKET, REQUEST, ANSWER)
    records = [sealer.seal(memoryview(given("early_said"))), sealer.end()]
    assert [record.hex() for record in records] == VECTORS["early_records"]
    opener = EarlyOpener(TICKET, REQUEST, ANSWER)
    assert opener.feed(b"".join(records)) == given("early_said")
    assert opener.is_over


def test_the_sealed_request_opens() -> None:
    sealed = bytes.fromhex(VECTORS["sealed"])
    assert open_request(sealed, [KEY], TARGET.public, NETWORK) == REQUEST


def test_the_signature_is_this_one() -> None:
    sealed = seal_request(REQUEST, CALLER, TARGET.public, KEY.public, NETWORK)
    content = KEY.open(sealed, "request", NETWORK)
    assert content[-64:].hex() == VECTORS["signature"]


def test_the_answer_is_this_one() -> None:
    locked = lock_answer(ANSWER, REQUEST)
    assert hkdf(REQUEST.secret, "answer", REQUEST.nonce).hex() == VECTORS["answer_key"]
    assert locked[:128].hex() == VECTORS["answer_start"]
    assert locked[-16:].hex() == VECTORS["answer_tag"]
    assert unlock_answer(locked, REQUEST) == ANSWER


@pytest.mark.parametrize("sender", ["caller", "callee"])
def test_the_keystreams_are_these(sender: str) -> None:
    wrap = caller_wrap(REQUEST, ANSWER) if sender == "caller" else callee_wrap(REQUEST, ANSWER)
    view = memoryview(bytearray(64 + 16))
    wrap.outgoing.process(view, 0, 64)
    assert view[:64].hex() == VECTORS["wrap"][sender]["keystream"]
    other = callee_wrap(REQUEST, ANSWER) if sender == "caller" else caller_wrap(REQUEST, ANSWER)
    other.incoming.process(view, 0, 64)
    assert not any(view)
