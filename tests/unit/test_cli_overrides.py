"""``phantom-tun override``: keys and signatures without a daemon, sending and listing with one."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Outcome, Shell, answering

from phantom_tun import profile
from phantom_tun.cli.exits import ExitCode
from phantom_tun.clock import DAY
from phantom_tun.control.model import OverrideInfo
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.ids import NetworkId
from phantom_tun.netdb import override_text
from phantom_tun.netdb.banned import pack_prefix, parse_prefix
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.fake_backend import FakeBackend
from phantom_tun.testing.record_factory import ApMaker
from phantom_tun.wire.records import OverrideAction, OverrideRecord

NODE = "ab" * 32


class Machine(Shell):
    """A machine whose node is in a network with one override key."""

    @property
    def directory(self) -> Path:
        return self.socket.parent

    @property
    def key(self) -> Path:
        return self.directory / "override.key"

    @property
    def profile(self) -> profile.Profile:
        return profile.load(self.directory / "network.toml")

    def file(self, text: str | bytes, name: str = "command") -> str:
        path = self.directory / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def sign(self, *arguments: str) -> Outcome:
        return self.bare("override", "sign", *arguments, "--key", str(self.key))

    def signed(self, *arguments: str) -> OverrideRecord:
        """What ``sign`` prints, which must work."""
        done = self.sign(*arguments)
        assert done.code == 0, done.err
        (line,) = [line for line in done.out.splitlines() if not line.startswith("#")]
        return override_text.parse_command(line)

    def verify(self, text: str, *arguments: str) -> Outcome:
        return self.bare("override", "verify", self.file(text), *arguments)


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    monkeypatch.delenv("PHANTOM_TUN_SOCKET", raising=False)
    monkeypatch.delenv("PHANTOM_TUN_CONFIG", raising=False)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    machine = Machine(capsys, tmp_path / "control.sock")
    public = machine.bare("override", "keygen", str(machine.key)).out.strip()
    assert machine.bare("network", "new", "home", "--override-key", public).code == 0
    return machine


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_is_for_nobody_else(machine: Machine) -> None:
    assert machine.key.stat().st_mode & 0o777 == 0o600
    seed = bytes.fromhex(machine.key.read_text())
    assert machine.profile.override_keys == (SigningKey(seed).public,)


def test_a_key_in_json(machine: Machine) -> None:
    done = machine.bare("override", "keygen", str(machine.directory / "two"), "--json")
    assert set(done.json) == {"file", "public_key"}
    assert done.json["public_key"] not in (machine.directory / "two").read_text()


def test_no_key_is_overwritten(machine: Machine) -> None:
    before = machine.key.read_bytes()
    done = machine.bare("override", "keygen", str(machine.key))
    assert done.code == ExitCode.CONFLICT
    assert machine.key.read_bytes() == before
    link = machine.directory / "link"
    link.symlink_to(machine.directory / "nowhere")
    assert machine.bare("override", "keygen", str(link)).code == ExitCode.CONFLICT


def test_a_key_that_others_can_read_is_not_used(machine: Machine) -> None:
    machine.key.chmod(0o644)
    done = machine.sign("ban", NODE)
    assert done.code == ExitCode.CONFIG
    assert "chmod 600" in done.err


@pytest.mark.parametrize("content", [b"noise", b"ab" * 31, b"\xff" * 64])
def test_what_is_no_key_is_not_used(machine: Machine, content: bytes) -> None:
    machine.key.write_bytes(content)
    done = machine.sign("ban", NODE)
    assert done.code == ExitCode.CONFIG
    assert "keygen" in done.err


def test_a_missing_key_is_explained(machine: Machine) -> None:
    machine.key.unlink()
    done = machine.sign("ban", NODE)
    assert done.code == ExitCode.CONFIG
    assert "keygen" in done.err


def test_keys_of_a_network_are_shown_and_announced(machine: Machine) -> None:
    key = machine.profile.override_keys[0].hex()
    assert f"override   {key}" in machine.bare("network", "show").out
    more = SigningKey(b"m" * 32).public
    update = dataclasses.replace(
        machine.profile, update_number=1, override_keys=(*machine.profile.override_keys, more)
    )
    done = machine.bare("network", "join", machine.file(profile.dump(update), "update"))
    assert f"May give override commands from now on: {more.hex()}" in done.out
    assert key not in done.out


def test_an_override_key_has_64_digits(machine: Machine) -> None:
    done = machine.bare("network", "new", "x", "-o", "/nowhere/x", "--override-key", "ab")
    assert done.code == ExitCode.USAGE
    assert "64 hex digits" in done.err


# --- signing ------------------------------------------------------------------------------------


def test_bans_by_id_address_and_prefix(machine: Machine) -> None:
    by_id = machine.signed("ban", NODE)
    assert (by_id.action, by_id.subject.hex()) == (OverrideAction.BAN_NODE, NODE)
    assert by_id.expires - by_id.created == 30 * DAY
    assert abs(by_id.number / 1000 - time.time()) < 60
    for text, prefix in (
        ("192.0.2.7", "192.0.2.7/32"),
        ("11.0.0.0/8", "11.0.0.0/8"),
        ("2a00:1::/32", "2a00:1::/32"),
    ):
        command = machine.signed("ban", text)
        assert command.action == OverrideAction.BAN_PREFIX
        assert str(parse_prefix(command.subject)) == prefix


def test_unbans_outlast_every_ban(machine: Machine) -> None:
    for subject, action in (
        (NODE, OverrideAction.UNBAN_NODE),
        ("192.0.2.7", OverrideAction.UNBAN_PREFIX),
    ):
        command = machine.signed("unban", subject)
        assert command.action == action
        assert command.expires - command.created == 90 * DAY


def test_deletions_and_pins(machine: Machine) -> None:
    assert machine.signed("delete", NODE).action == OverrideAction.DELETE_RECORD
    network = machine.profile
    params = NetworkParams(network.network_id, network.pow_bits, network.ap4, network.ap6)
    record = ApMaker(1, params).record()
    saved = machine.file(f"# remark\n{override_text.to_line(record.encoded)}\n", "record")
    pin = machine.signed("pin", saved)
    assert (pin.action, pin.subject) == (OverrideAction.PIN_RECORD, record.public_key)
    assert pin.record == record.encoded


def test_a_record_of_another_network_is_not_pinned(machine: Machine) -> None:
    line = override_text.to_line(ApMaker(1).record().encoded)
    done = machine.sign("pin", machine.file(line, "record"))
    assert done.code == ExitCode.FAILED
    assert "its owner signed" in done.err


def test_options_of_signing(machine: Machine) -> None:
    target = machine.directory / "signed"
    done = machine.sign("ban", NODE, "--for", "12h", "--number", "7", "-o", str(target))
    assert (done.code, done.out) == (0, "")
    text = target.read_text()
    assert text.startswith(f"# network home: ban node {NODE}\n# number 7, until 20")
    command = override_text.parse_command(text.splitlines()[-1])
    assert (command.number, command.expires - command.created) == (7, 12 * 3600)
    again = machine.sign("ban", NODE, "-o", str(target))
    assert again.code == ExitCode.CONFLICT
    assert f"{target} exists" in again.err
    assert target.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ban", "nobody"), ExitCode.USAGE, "neither a node id"),
        (("ban", "10.0.0.1/8"), ExitCode.USAGE, "has host bits set"),
        (("ban", "0.0.0.0/0"), ExitCode.USAGE, "too large a part"),
        (("ban", "2000::/8"), ExitCode.USAGE, "too large a part"),
        (("delete", "250.1.2.3"), ExitCode.USAGE, "isn't an AP key"),
        (("pin", "/nowhere"), ExitCode.CONFIG, "can't read"),
        (("pin", "/dev/null"), ExitCode.USAGE, "nothing in /dev/null"),
        (("ban", NODE, "--for", "soon"), ExitCode.USAGE, "is no time"),
        (("ban", NODE, "--for", "0d"), ExitCode.USAGE, "is no time"),
        (("ban", NODE, "--for", "91d"), ExitCode.USAGE, "90 days at most"),
        (("ban", NODE, "--number", "-1"), ExitCode.USAGE, "--number"),
        (("bless", NODE), ExitCode.USAGE, "phantom-tun: 'bless' is no command"),
        (("ban", NODE, "--network", "/nowhere"), ExitCode.CONFIG, "/nowhere"),
    ],
)
def test_what_can_t_be_signed(
    machine: Machine, arguments: tuple[str, ...], code: ExitCode, said: str
) -> None:
    done = machine.sign(*arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


@pytest.mark.parametrize("content", ["noise!", "bm9pc2U=", "eA==\neA=="])
def test_files_without_a_record_are_refused(machine: Machine, content: str) -> None:
    done = machine.sign("pin", machine.file(content, "record"))
    assert done.code == ExitCode.USAGE


def test_a_key_that_the_network_doesn_t_know_signs_with_a_note(machine: Machine) -> None:
    machine.key.unlink()
    machine.bare("override", "keygen", str(machine.key))
    done = machine.sign("ban", NODE)
    assert done.code == 0
    assert "nodes will refuse the command" in done.err
    assert machine.verify(done.out).code == ExitCode.FAILED


# --- verifying ----------------------------------------------------------------------------------


def test_a_good_command_is_shown(machine: Machine) -> None:
    text = machine.sign("ban", "192.0.2.7").out + machine.sign("delete", NODE).out
    done = machine.verify(text)
    assert done.code == 0
    assert "ban addresses 192.0.2.7/32" in done.out
    assert f"delete records of key {NODE}" in done.out
    assert done.out.count("    valid\n") == 2
    answer = machine.verify(text, "--json").json
    assert [found["valid"] for found in answer] == [True, True]
    assert answer[0]["subject"] == "192.0.2.7/32"


def test_commands_can_be_pasted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = machine.sign("ban", NODE).out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert machine.bare("override", "verify", "-").code == 0


def test_bad_commands_are_told_from_what_is_none(machine: Machine) -> None:
    good = machine.signed("ban", NODE)
    key = SigningKey(bytes.fromhex(machine.key.read_text()))
    now = time.time()

    def line(network: bytes, created: float, subject: bytes) -> str:
        return override_text.to_line(
            sign_override(
                key,
                NetworkId(network),
                number=1,
                action=OverrideAction.BAN_PREFIX,
                subject=subject,
                created=created,
                expires=created + DAY,
            ).encoded
        )

    subject = pack_prefix(parse_prefix(bytes([10, 0, 0, 0, 8])))
    own = machine.profile.network_id
    flipped = bytearray(good.encoded)
    flipped[-1] ^= 1
    for bad, reason in (
        (override_text.to_line(bytes(flipped)), "isn't signed by its key"),
        (line(bytes(32), now, subject), "isn't signed by its key"),
        (line(own, now - 2 * DAY, subject), "no longer"),
        (line(own, now + DAY, subject), "not valid yet"),
        (line(own, now, bytes(5)), "too large a part"),
    ):
        done = machine.verify(bad)
        assert done.code == ExitCode.FAILED
        assert reason in done.out
        assert "NOT VALID" in done.out
        assert done.err == "phantom-tun: nodes of 'home' would refuse it\n"
        answer = machine.verify(bad, "--json")
        assert answer.code == ExitCode.FAILED
        assert not answer.json[0]["valid"]
    for none in ("", "# remark", "noise!", "bm9pc2U="):
        assert machine.verify(none).code == ExitCode.USAGE
    assert machine.bare("override", "verify", machine.file(b"\xff")).code == ExitCode.USAGE


# --- with a daemon ------------------------------------------------------------------------------


def info(number: int, standing: str = "in_force") -> OverrideInfo:
    now = time.time()
    return OverrideInfo(number, "cd" * 32, "ban node", NODE, now, now + DAY, standing)  # type: ignore[arg-type]


def test_sending_and_listing(machine: Machine) -> None:
    backend = FakeBackend(given={"AAAA": info(1), "BBBB": info(2, "over_budget")})
    source = machine.file("# both\nAAAA\n\nBBBB\n")
    with answering(machine.socket, backend):
        assert "no override command is known" in machine.run("override", "list").out
        done = machine.run("override", "send", source)
        assert done.code == 0
        assert done.out.splitlines() == [
            f"sent: ban node {NODE} (in force)",
            f"sent: ban node {NODE} (NOT in force: bans would cover too many nodes)",
        ]
        again = machine.run("override", "send", source, "--json")
        assert [found["new"] for found in again.json] == [False, False]
        listed = machine.run("override", "list")
        assert "NOT in force" in listed.out
        assert "bans may cover 1" in listed.out
        assert machine.run("override", "list", "--json").json["commands"][0]["number"] == 1
    assert backend.sent == ["AAAA", "BBBB"]


def test_what_the_node_refuses_has_its_exit_code(machine: Machine) -> None:
    with answering(machine.socket, FakeBackend(override_keys=())):
        done = machine.run("override", "send", machine.file("AAAA"))
        assert done.code == ExitCode.USAGE
        assert "nobody can give commands" in machine.run("override", "list").out
    assert machine.run("override", "list").code == ExitCode.NO_DAEMON


def test_a_key_record_can_be_saved(machine: Machine) -> None:
    target = machine.directory / "record"
    with answering(machine.socket, FakeBackend()):
        done = machine.run("netdb", "get", "250.1.2.3", "--save", str(target))
        assert done.code == 0
        assert target.read_text().startswith("# key record of 250.1.2.3\n")
        refused = machine.run("netdb", "get", "01" * 32, "--save", str(target))
        assert refused.code == ExitCode.USAGE
        assert "no AP address" in refused.err
