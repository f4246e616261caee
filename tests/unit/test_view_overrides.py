"""Override commands as the node's owner gives and sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from phantom_tun.clock import DAY
from phantom_tun.config import Config
from phantom_tun.control.dispatch import code_of
from phantom_tun.control.schema import ControlError
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import UsageError
from phantom_tun.netdb import override_text
from phantom_tun.netdb import overrides as module
from phantom_tun.netdb.overrides import Overrides
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.record_factory import NETWORK, NOW, NodeMaker
from phantom_tun.view import overrides as view
from phantom_tun.wire.records import OverrideAction

KEY = SigningKey(b"o" * 32)
KNOWN = [NodeMaker(number).record() for number in range(45)]


def line(number: int, subject: bytes = KNOWN[1].node_id, *, key: SigningKey = KEY) -> str:
    command = sign_override(
        key,
        NETWORK.network_id,
        number=number,
        action=OverrideAction.BAN_NODE,
        subject=subject,
        created=NOW,
        expires=NOW + DAY,
    )
    return override_text.to_line(command.encoded)


@pytest.fixture
def node() -> Any:
    commands = Overrides(NETWORK, [KEY.public], ())
    netdb = SimpleNamespace(
        command=lambda encoded: commands.receive(encoded, None, NOW) is not None,
        commands=lambda: commands.standings(commands.in_force(KNOWN, NOW), NOW),
        all_records=lambda: KNOWN,
    )
    profile = SimpleNamespace(override_keys=(KEY.public,))
    return SimpleNamespace(netdb=netdb, profile=profile, config=Config(), state="ready")


def test_what_was_sent_is_listed_with_what_it_amounts_to(node: Any) -> None:
    sent = view.send(node, line(1))
    assert sent.new
    assert (sent.action, sent.subject, sent.standing) == (
        "ban node",
        KNOWN[1].node_id.hex(),
        "in_force",
    )
    assert not view.send(node, line(1)).new
    view.send(node, line(2, KNOWN[2].node_id))
    assert view.send(node, line(3, KNOWN[3].node_id)).standing == "over_budget"
    listed = view.listed(node)
    assert listed.enabled
    assert listed.keys == (KEY.public.hex(),)
    assert listed.ban_limit == 2
    assert [each.standing for each in listed.commands] == ["in_force", "in_force", "over_budget"]


def refusal(node: Any, text: str) -> str:
    with pytest.raises(ControlError) as caught:
        view.send(node, text)
    return caught.value.code


def test_refusals_have_their_codes(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(node, line(1, key=SigningKey(b"x" * 32))) == "failed"
    view.send(node, line(1))
    assert refusal(node, line(1, KNOWN[2].node_id)) == "conflict"
    monkeypatch.setattr(module, "MAX_COMMANDS", 1)
    assert refusal(node, line(2)) == "busy"
    for noise in ("noise!", "bm9pc2U="):
        with pytest.raises(UsageError) as caught:
            view.send(node, noise)
        assert code_of(caught.value) == "invalid"
    node.state = "starting"
    assert refusal(node, line(1)) == "unavailable"
