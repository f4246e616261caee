"""Resolving AP addresses: what is believed, what is remembered, and for whom."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.errors import (
    ConfigError,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    RecordRefused,
    Unreachable,
    WorldError,
)
from phantom_tun.ids import NetworkId, PublicKey
from phantom_tun.net.addresses import directory as module
from phantom_tun.net.addresses.ap_database import Undecided
from phantom_tun.net.addresses.directory import (
    FETCH_WITHIN,
    MARGIN,
    NEGATIVE_FOR,
    REFRESH_AFTER,
    Directory,
)
from phantom_tun.net.addresses.identities import DEFAULT_NAME, IdentityStore, Lease, LeaseState
from phantom_tun.net.addresses.inquiry import (
    SILENT_AFTER,
    SILENT_BESIDE_ONE,
    STRAGGLERS,
    NotPublished,
)
from phantom_tun.net.addresses.pins import PinChanged, Pins
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import sign_ap_key_record
from phantom_tun.testing.fake_netdb import Bend, FakeNetdb, FakePaths
from phantom_tun.testing.fake_owner import SMALL_NETWORK as NETWORK
from phantom_tun.testing.fake_owner import FakeOwner
from phantom_tun.wire.netdb import (
    Call,
    Resolution,
    ResolveAp,
    UpdateApRoutes,
    Vote,
    WriteReport,
)
from phantom_tun.wire.records import APKeyRecord

START = 1_800_000_000.0
ME = DEFAULT_NAME


class TrioTime:
    """Seconds since the epoch in virtual time."""

    def now(self) -> float:
        return START + trio.current_time()


class World:
    """A directory, the network it asks, and its owner's files."""

    def __init__(self, state: Path) -> None:
        self.clock = TrioTime()
        self.netdb = FakeNetdb(NETWORK, self.clock)
        self.paths = FakePaths(self.netdb, self.clock)
        self.identities = IdentityStore(state, NETWORK, self.clock)
        self.identities.load()
        self.pins = Pins(state, self.clock.now)
        self.directory = Directory(
            self.paths, self.identities, self.pins, clock=self.clock, rng=random.Random(1)
        )

    def now(self) -> float:
        return self.clock.now()

    def published(self, **options: float) -> FakeOwner:
        owner = FakeOwner()
        owner.publish(self.netdb, self.now(), **options)  # type: ignore[arg-type]
        return owner

    def questions(self) -> int:
        return len(self.paths.asked(ResolveAp))


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    made = World(state)
    await nursery.start(made.directory.run)
    return made


def says(record: APKeyRecord, *routes: bytes) -> Bend:
    """An exit node that answers with this record whatever the network holds."""

    def bend(call: Call, answer: bytes) -> bytes:
        return Resolution(record.encoded, routes, 20, 20, ()).encode()

    return bend


def nothing(call: Call, answer: bytes) -> bytes:
    """An exit node that denies everything."""
    return Resolution(b"", (), 20, 20, ()).encode()


# --- what an answer holds ------------------------------------------------------------------------


async def test_an_ap6_address_resolves_over_one_path(
    autojump_clock: MockClock, world: World
) -> None:
    owner = FakeOwner()
    record = owner.publish(world.netdb, world.now(), routes=2)
    resolved = await world.directory.resolve(ME, owner.ap6)
    assert (resolved.public_key, resolved.ap6) == (owner.key.public, owner.ap6)
    assert (resolved.certificate, resolved.request_key) == (record.certificate, record.request_key)
    assert {route[0] for route in resolved.routes} == {owner.entry_node}
    assert {route[1] for route in resolved.routes} == {bytes(16), bytes(15) + b"\1"}
    assert resolved.confirmations is None
    assert world.questions() == 1
    assert world.paths.log[0].identity == ME


async def test_an_unpinned_ap4_address_is_asked_over_several_paths_then_pinned(
    autojump_clock: MockClock,
    world: World,
) -> None:
    owner = world.published()
    resolved = await world.directory.resolve(ME, owner.ap4)
    assert resolved.public_key == owner.key.public
    assert resolved.confirmations == 3
    assert {asked.path for asked in world.paths.log} == {0, 1, 2}
    pin = world.pins.get(owner.ap4)
    assert pin is not None
    assert (pin.public_key, pin.confirmations) == (owner.key.public, 3)
    world.directory.forget(ME, owner.ap4)
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 3
    assert world.questions() == 4


async def test_with_one_path_the_result_says_so_and_is_checked_again(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.exits = 1
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 1
    world.paths.exits = 2
    world.directory.forget(ME, owner.ap4)
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 2


async def test_two_agreeing_paths_wait_only_briefly_for_a_third(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.slow[2] = 20.0
    before = trio.current_time()
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 2
    assert trio.current_time() - before == pytest.approx(0.1 + STRAGGLERS)


async def test_own_addresses_need_no_question(autojump_clock: MockClock, world: World) -> None:
    identity = world.identities.get(ME)
    world.identities.set_lease(identity, Lease(2, LeaseState.HELD, world.now() + HOUR))
    assert identity.ap4 is not None
    for address in (identity.ap6, identity.ap4):
        resolved = await world.directory.resolve(ME, address)
        assert resolved.public_key == identity.public_key
        assert resolved.request_key == identity.request_keys[0].public
    assert world.questions() == 0


@pytest.mark.parametrize("address", ["192.0.2.1", "240.0.0.1", "240.3.0.1", "2001:2f::1", "::1"])
async def test_what_is_no_ap_address_is_never_asked_for(
    autojump_clock: MockClock, world: World, address: str
) -> None:
    with pytest.raises(NotPublished, match="can't belong"):
        await world.directory.resolve(ME, ipaddress.ip_address(address))
    assert world.questions() == 0


async def test_before_it_runs_it_says_so(autojump_clock: MockClock, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with pytest.raises(Unreachable, match="still starting"):
        await World(state).directory.resolve(ME, FakeOwner().ap6)


async def test_once_it_stops_nothing_is_asked(autojump_clock: MockClock, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    world = World(state)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.directory.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(Unreachable, match="stopping"):
        await world.directory.resolve(ME, FakeOwner().ap6)
    assert world.questions() == 0


# --- what isn't believed -------------------------------------------------------------------------


Forge = Callable[[FakeOwner, float], APKeyRecord]


def altered(owner: FakeOwner, now: float) -> APKeyRecord:
    return msgspec.structs.replace(owner.record(now), request_key=bytes(1216))


def of_somebody_else(owner: FakeOwner, now: float) -> APKeyRecord:
    return FakeOwner(n=owner.n).record(now)


def of_another_network(owner: FakeOwner, now: float) -> APKeyRecord:
    other = NetworkParams(NetworkId(b"o" * 32), 0, NETWORK.ap4, NETWORK.ap6)
    return FakeOwner(other, owner.key, owner.n).record(now)


def expired(owner: FakeOwner, now: float) -> APKeyRecord:
    return owner.record(now - 2 * HOUR, life=HOUR)


def from_the_future(owner: FakeOwner, now: float) -> APKeyRecord:
    return owner.record(now + 10 * MINUTE)


def too_long_lived(owner: FakeOwner, now: float) -> APKeyRecord:
    return owner.record(now, life=2 * DAY)


def without_certificate(owner: FakeOwner, now: float) -> APKeyRecord:
    good = owner.record(now)
    return sign_ap_key_record(
        owner.key,
        NETWORK.network_id,
        ap4_n=owner.n,
        certificate=b"no certificate",
        request_key=good.request_key,
        created=good.created,
        expires=good.expires,
        sequence=good.sequence,
    )


FORGERIES = [
    altered,
    of_somebody_else,
    of_another_network,
    expired,
    from_the_future,
    too_long_lived,
    without_certificate,
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forge", FORGERIES)
async def test_a_forged_record_is_never_believed(
    autojump_clock: MockClock, world: World, forge: Forge, version: int
) -> None:
    owner = FakeOwner()
    lie = says(forge(owner, world.now()), owner.route(world.now()).encoded)
    world.paths.liars = dict.fromkeys((0, 1, 2), lie)
    with pytest.raises(Unreachable, match="no valid answer"):
        await world.directory.resolve(ME, owner.ap4 if version == 4 else owner.ap6)
    assert world.directory.statistics()["bad_answers"] == world.questions()
    assert world.pins.all() == []


@pytest.mark.parametrize("forge", FORGERIES)
async def test_one_liar_among_the_exits_does_no_harm(
    autojump_clock: MockClock, world: World, forge: Forge
) -> None:
    owner = world.published()
    world.paths.liars[0] = says(forge(owner, world.now()))
    for _ in range(5):
        resolved = await world.directory.resolve(ME, owner.ap6)
        assert resolved.public_key == owner.key.public
        assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 2
        world.directory.forget(ME, owner.ap6)
        world.directory.forget(ME, owner.ap4)


@pytest.mark.parametrize(
    "answer", [b"", b"\xc1", b"x" * 9000, WriteReport(20, 20, 0, b"").encode()]
)
async def test_an_answer_that_is_none_is_refused(
    autojump_clock: MockClock, world: World, answer: bytes
) -> None:
    owner = world.published()
    world.paths.liars = dict.fromkeys((0, 1, 2), lambda _call, _answer: answer)
    with pytest.raises(Unreachable, match="no valid answer"):
        await world.directory.resolve(ME, owner.ap6)


async def test_an_ap4_address_must_be_the_one_claimed(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    elsewhere = FakeOwner(key=owner.key, n=owner.n + 1)
    assert elsewhere.ap4 != owner.ap4
    world.paths.liars = dict.fromkeys((0, 1, 2), says(owner.record(world.now())))
    with pytest.raises(Unreachable, match="no valid answer"):
        await world.directory.resolve(ME, elsewhere.ap4)


async def test_bad_routes_are_left_out(autojump_clock: MockClock, world: World) -> None:
    owner = world.published()
    record, now = owner.record(world.now()), world.now()
    good = owner.route(now, 1)
    world.paths.liars = dict.fromkeys(
        (0, 1, 2),
        says(
            record,
            good.encoded,
            b"no route",
            FakeOwner().route(now, 2).encoded,
            owner.route(now - HOUR, 3, life=MINUTE).encoded,
            msgspec.structs.replace(good, entry_id=b"x" * 16).encoded,
        ),
    )
    resolved = await world.directory.resolve(ME, owner.ap6)
    assert [route[1] for route in resolved.routes] == [good.entry_id]
    assert world.directory.statistics()["bad_routes"] == 4


async def test_of_two_editions_of_a_route_the_newer_counts(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    now = world.now()
    old, new = owner.route(now - 10, life=HOUR), owner.route(now, life=2 * HOUR)
    for order in ((old, new), (new, old)):
        lie = says(owner.record(now), *(route.encoded for route in order))
        world.paths.liars = dict.fromkeys((0, 1, 2), lie)
        world.directory.forget(ME, owner.ap6)
        (route,) = (await world.directory.resolve(ME, owner.ap6)).routes
        assert route[2] == new.expires


async def test_an_older_record_is_not_believed_again(
    autojump_clock: MockClock, world: World
) -> None:
    owner = FakeOwner()
    old = owner.record(world.now() - 100)
    new = owner.publish(world.netdb, world.now())
    assert (await world.directory.resolve(ME, owner.ap6)).sequence == new.sequence
    world.directory.forget(ME, owner.ap6)
    world.paths.liars = dict.fromkeys(
        (0, 1, 2), says(old, owner.route(world.now(), life=HOUR).encoded)
    )
    with pytest.raises(NotPublished, match="no such"):
        await world.directory.resolve(ME, owner.ap6)
    assert world.directory.statistics()["old_answers"] == world.questions() - 1
    del world.paths.liars[1]
    await trio.sleep(NEGATIVE_FOR)
    assert (await world.directory.resolve(ME, owner.ap6)).sequence == new.sequence


# --- AP4: several paths and pins -----------------------------------------------------------------


@pytest.mark.parametrize(("exits", "liars"), [(2, (1,)), (4, (0, 3))])
async def test_conflicting_answers_without_a_majority_are_refused(
    autojump_clock: MockClock, world: World, exits: int, liars: tuple[int, ...]
) -> None:
    owner = FakeOwner()
    rival = owner.rival()
    owner.publish(world.netdb, world.now())
    assert rival.ap4 == owner.ap4
    world.paths.exits = exits
    lie = says(rival.record(world.now()), rival.route(world.now()).encoded)
    world.paths.liars = dict.fromkeys(liars, lie)
    with pytest.raises(Unreachable, match="don't agree"):
        await world.directory.resolve(ME, owner.ap4)
    assert world.directory.statistics()["conflicting_answers"] == 1
    assert world.pins.all() == []


@pytest.mark.parametrize("exits", [3, 5])
async def test_a_conflict_is_decided_by_more_paths(
    autojump_clock: MockClock, world: World, exits: int
) -> None:
    owner = FakeOwner()
    rival = owner.rival()
    owner.publish(world.netdb, world.now())
    world.paths.exits = exits
    lie = says(rival.record(world.now()), rival.route(world.now()).encoded)
    liars = (0,) if exits == 3 else (0, 1)
    world.paths.liars = dict.fromkeys(liars, lie)
    resolved = await world.directory.resolve(ME, owner.ap4)
    assert (resolved.public_key, resolved.confirmations) == (
        owner.key.public,
        exits - len(liars),
    )
    assert all(route[0] == owner.entry_node for route in resolved.routes)


def divided(call: Call, answer: bytes) -> bytes:
    """An exit node whose storers don't agree about AP4 addresses."""
    if not isinstance(call, ResolveAp) or call.ip.version == 6:
        return answer
    votes = (Vote(b"a" * 32, 1, b"a" * 32, 33), Vote(b"b" * 32, 1, b"b" * 32, 27))
    return Resolution(b"", (), 60, 60, votes).encode()


async def test_an_address_whose_storers_are_divided_is_nobody_s(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.exits = 5
    world.paths.liars = dict.fromkeys(range(5), divided)
    with pytest.raises(Unreachable, match="don't agree on who owns it: 33 name one key, 27 others"):
        await world.directory.resolve(ME, owner.ap4)
    assert {asked.path for asked in world.paths.log} == {0, 1, 2, 3, 4}
    assert world.pins.get(owner.ap4) is None
    with pytest.raises(Undecided):
        await world.directory.ask(ME, owner.ap4)


async def test_a_path_over_which_there_is_no_telling_counts_as_dissent(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.exits = 5
    world.paths.liars = {0: divided, 1: divided}
    resolved = await world.directory.resolve(ME, owner.ap4)
    assert (resolved.public_key, resolved.confirmations) == (owner.key.public, 3)
    world.directory.forget(ME, owner.ap4)
    world.pins.remove(owner.ap4)
    world.paths.liars = dict.fromkeys(range(3), divided)
    with pytest.raises(Unreachable, match="don't agree"):
        await world.directory.resolve(ME, owner.ap4)


async def test_a_pinned_owner_is_found_though_the_storers_are_divided(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    await world.directory.resolve(ME, owner.ap4)
    world.directory.forget(ME, owner.ap4)
    world.paths.liars = dict.fromkeys(range(3), divided)
    resolved = await world.directory.resolve(ME, owner.ap4)
    assert resolved.public_key == owner.key.public
    assert resolved.routes


async def test_a_pinned_key_that_claims_another_address_does_not_get_this_one(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    pinned = next(owner.ap4 + number for number in (1, -1))
    world.pins.confirm(pinned, PublicKey(owner.key.public), 3)
    world.paths.liars = dict.fromkeys(range(3), divided)
    with pytest.raises(Unreachable, match="don't agree on who owns it"):
        await world.directory.resolve(ME, pinned)


async def pinned_then_changed(world: World) -> tuple[FakeOwner, FakeOwner]:
    owner = FakeOwner()
    rival = owner.rival()
    owner.publish(world.netdb, world.now(), life=10 * MINUTE)
    await world.directory.resolve(ME, owner.ap4)
    await trio.sleep(11 * MINUTE)
    rival.publish(world.netdb, world.now())
    return owner, rival


async def test_a_changed_pin_is_refused_and_the_owner_decides(
    autojump_clock: MockClock, world: World
) -> None:
    owner, rival = await pinned_then_changed(world)
    for _ in range(2):
        with pytest.raises(PinChanged) as caught:
            await world.directory.resolve(ME, rival.ap4)
    assert caught.value.change.offered == rival.key.public
    assert caught.value.change.confirmations == 3
    assert world.directory.statistics()["pin_changed"] == 1
    world.pins.accept(owner.ap4)
    await trio.sleep(NEGATIVE_FOR)
    assert (await world.directory.resolve(ME, rival.ap4)).public_key == rival.key.public


async def test_a_pin_that_changes_while_cached_ends_the_use_of_the_cache(
    autojump_clock: MockClock, world: World
) -> None:
    owner = FakeOwner()
    rival = owner.rival()
    owner.publish(world.netdb, world.now())
    await world.directory.resolve(ME, owner.ap4)
    await trio.sleep(2)
    world.paths.liars = dict.fromkeys((0, 1, 2), says(rival.record(world.now())))
    with pytest.raises(PinChanged):
        await world.directory.resolve(ME, owner.ap4, fresh=True)
    with pytest.raises(PinChanged):
        await world.directory.resolve(ME, owner.ap4)


async def test_one_liar_can_not_raise_the_alarm_about_a_pin(
    autojump_clock: MockClock, world: World
) -> None:
    owner = FakeOwner()
    rival = owner.rival()
    owner.publish(world.netdb, world.now())
    await world.directory.resolve(ME, owner.ap4)
    world.paths.liars[0] = says(rival.record(world.now()))
    world.directory.forget(ME, owner.ap4)
    assert (await world.directory.resolve(ME, owner.ap4)).public_key == owner.key.public
    assert world.pins.changes() == []


async def test_a_pin_that_can_not_be_written_is_no_reason_to_fail(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise ConfigError("no space")

    monkeypatch.setattr("phantom_tun.net.addresses.pins.atomic_write", full)
    owner = world.published()
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 3
    assert world.directory.statistics()["pins_not_written"] == 1


# --- callers shown to services -------------------------------------------------------------------


async def test_callers_are_confirmed(autojump_clock: MockClock, world: World) -> None:
    owner, stranger = world.published(), FakeOwner()
    confirm = world.directory.confirm
    assert await confirm(ME, owner.ap6, owner.key.public)
    assert not await confirm(ME, owner.ap6, stranger.key.public)
    assert world.questions() == 0
    assert await confirm(ME, owner.ap4, owner.key.public)
    assert not await confirm(ME, owner.ap4, stranger.key.public)
    assert not await confirm(ME, stranger.ap4, stranger.key.public)


# --- the cache -----------------------------------------------------------------------------------


async def test_questions_at_the_same_time_are_one(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    owner = world.published()
    answers = []

    async def ask() -> None:
        answers.append(await world.directory.resolve(ME, owner.ap6))

    async with trio.open_nursery() as askers:
        for _ in range(20):
            askers.start_soon(ask)
    assert len(answers) == 20
    assert world.questions() == 1


async def test_who_gives_up_takes_nothing_from_the_others(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    with trio.move_on_after(0.05):
        await world.directory.resolve(ME, owner.ap6)
    before = trio.current_time()
    await world.directory.resolve(ME, owner.ap6)
    assert trio.current_time() - before == pytest.approx(0.05)
    assert world.questions() == 1


async def test_identities_share_nothing(autojump_clock: MockClock, world: World) -> None:
    owner = world.published()
    await world.directory.resolve(ME, owner.ap6)
    await world.directory.resolve("web", owner.ap6)
    assert [asked.identity for asked in world.paths.log] == [ME, "web"]
    world.directory.forget_identity(ME)
    await world.directory.resolve("web", owner.ap6)
    assert world.questions() == 2
    await world.directory.resolve(ME, owner.ap6)
    assert world.questions() == 3


async def test_old_answers_are_used_and_renewed_in_the_background(
    autojump_clock: MockClock, world: World
) -> None:
    owner = FakeOwner()
    owner.publish(world.netdb, world.now())
    await world.directory.resolve(ME, owner.ap6)
    await trio.sleep(REFRESH_AFTER + 1)
    renewed = owner.publish(world.netdb, world.now())
    before = trio.current_time()
    stale = await world.directory.resolve(ME, owner.ap6)
    assert trio.current_time() == before
    assert stale.sequence < renewed.sequence
    await trio.sleep(1)
    assert (await world.directory.resolve(ME, owner.ap6)).sequence == renewed.sequence
    assert world.questions() == 2


async def test_a_failed_renewal_leaves_the_old_answer(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    await world.directory.resolve(ME, owner.ap6)
    await trio.sleep(REFRESH_AFTER + 1)
    world.paths.liars = dict.fromkeys((0, 1, 2), nothing)
    await world.directory.resolve(ME, owner.ap6)
    await trio.sleep(1)
    assert (await world.directory.resolve(ME, owner.ap6)).public_key == owner.key.public


async def test_an_expired_answer_is_not_used(autojump_clock: MockClock, world: World) -> None:
    owner = world.published(life=10 * MINUTE)
    longer = owner.route(world.now() + 1, life=HOUR)
    world.netdb.perform(UpdateApRoutes((longer.encoded,)))
    await world.directory.resolve(ME, owner.ap6)
    await trio.sleep(10 * MINUTE - MARGIN)
    world.paths.liars = dict.fromkeys((0, 1, 2), nothing)
    with pytest.raises(Unreachable):
        await world.directory.resolve(ME, owner.ap6)


async def test_expired_routes_are_left_out_and_asked_for_again(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published(routes=0)
    for number, life in ((1, 10 * MINUTE), (2, 20 * MINUTE)):
        route = owner.route(world.now(), number, life=life)
        world.netdb.perform(UpdateApRoutes((route.encoded,)))
    assert len((await world.directory.resolve(ME, owner.ap6)).routes) == 2
    await trio.sleep(10 * MINUTE)
    (route_left,) = (await world.directory.resolve(ME, owner.ap6)).routes
    assert route_left[1] == (2).to_bytes(16, "big")
    await trio.sleep(10 * MINUTE)
    asked = world.questions()
    with pytest.raises(Unreachable, match="no way in"):
        await world.directory.resolve(ME, owner.ap6)
    assert world.questions() == asked + 1


async def test_a_fresh_answer_is_asked_for_when_routes_fail(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    await world.directory.resolve(ME, owner.ap6)
    await world.directory.resolve(ME, owner.ap6, fresh=True)
    assert world.questions() == 1
    await trio.sleep(1)
    await world.directory.resolve(ME, owner.ap6, fresh=True)
    assert world.questions() == 2


async def test_failures_are_remembered_briefly(autojump_clock: MockClock, world: World) -> None:
    owner = FakeOwner()
    for _ in range(3):
        with pytest.raises(NotPublished, match="no such"):
            await world.directory.resolve(ME, owner.ap6)
    asked = world.questions()
    assert asked == 3
    owner.publish(world.netdb, world.now())
    await trio.sleep(NEGATIVE_FOR)
    assert (await world.directory.resolve(ME, owner.ap6)).public_key == owner.key.public


@pytest.mark.parametrize(
    "error", [LinkBroken("gone"), DeadlineExpired("late"), PathUnavailable("none")]
)
async def test_another_path_is_tried_when_one_fails(
    autojump_clock: MockClock, world: World, error: WorldError
) -> None:
    owner = world.published()
    world.paths.failures = [error]
    assert (await world.directory.resolve(ME, owner.ap6)).public_key == owner.key.public
    world.paths.failures = [error] * 10
    with pytest.raises(Unreachable, match="could not be asked"):
        await world.directory.resolve(ME, FakeOwner().ap6)


async def test_a_silent_path_gets_company(autojump_clock: MockClock, world: World) -> None:
    owner = world.published()
    world.paths.exits = 2
    for silent in range(2):
        world.paths.slow = {silent: 20.0}
        before = trio.current_time()
        assert (await world.directory.resolve(ME, owner.ap6)).public_key == owner.key.public
        assert trio.current_time() - before <= 2 * SILENT_AFTER + 0.2
        world.directory.forget(ME, owner.ap6)


async def test_a_silent_path_does_not_hold_up_a_first_contact(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.exits, world.paths.slow = 2, {1: 20.0}
    before = trio.current_time()
    # Less sure than otherwise, so that the next contact counts as a first one again.
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 1
    assert trio.current_time() - before == pytest.approx(SILENT_BESIDE_ONE + 0.1)


async def test_a_denied_ap4_address_is_given_up_after_one_round(
    autojump_clock: MockClock, world: World
) -> None:
    before = trio.current_time()
    with pytest.raises(NotPublished, match="no such"):
        await world.directory.resolve(ME, FakeOwner().ap4)
    assert trio.current_time() - before == pytest.approx(0.1)


async def test_an_ap4_address_that_one_path_knows_is_found(
    autojump_clock: MockClock, world: World
) -> None:
    owner = world.published()
    world.paths.liars = {0: nothing, 1: nothing}
    assert (await world.directory.resolve(ME, owner.ap4)).confirmations == 1


async def test_everything_has_a_deadline(autojump_clock: MockClock, world: World) -> None:
    owner = world.published()
    world.paths.round_trip = 10 * FETCH_WITHIN
    for address in (owner.ap4, owner.ap6):
        before = trio.current_time()
        with pytest.raises(Unreachable, match="in time"):
            await world.directory.resolve(ME, address)
        assert trio.current_time() - before == pytest.approx(FETCH_WITHIN)


async def test_the_tables_are_bounded(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    owners = [world.published() for _ in range(5)]
    for owner in owners:
        await world.directory.resolve(ME, owner.ap6)
    statistics = world.directory.statistics()
    assert (statistics["entries"], statistics["entries_evicted"]) == (3, 2)
    monkeypatch.setattr(module, "MAX_FETCHES", 0)
    with pytest.raises(Unreachable, match="too many"):
        await world.directory.resolve(ME, owners[0].ap6)
    assert world.directory.statistics()["fetches_refused"] == 1


# --- for people ----------------------------------------------------------------------------------


async def test_votes_can_be_seen(autojump_clock: MockClock, world: World) -> None:
    owner = world.published()
    found = await world.directory.ask(ME, owner.ap4, path_index=1)
    assert found is not None
    assert [vote.public_key for vote in found.votes] == [owner.key.public]
    assert world.paths.log[-1].path == 1
    assert await world.directory.ask(ME, FakeOwner().ap4) is None
    world.paths.liars[0] = says(of_somebody_else(owner, world.now()))
    with pytest.raises(RecordRefused, match="another address"):
        await world.directory.ask(ME, owner.ap4, path_index=0)


# --- what the identity's own affairs are asked over -----------------------------------------------


async def test_callers_are_confirmed_over_paths_that_hide_as_well_as_the_entries(
    autojump_clock: MockClock, world: World
) -> None:
    caller, other = world.published(), world.published()
    assert await world.directory.confirm(ME, caller.ap4, PublicKey(caller.key.public))
    asked = world.paths.asked(ResolveAp)
    assert asked
    assert all(one.hidden and not one.private for one in asked)
    await trio.sleep(REFRESH_AFTER)
    assert await world.directory.confirm(ME, caller.ap4, PublicKey(caller.key.public))
    await trio.sleep(1)
    again = world.paths.asked(ResolveAp)[len(asked) :]
    assert again, "in the background"
    assert all(one.hidden for one in again)
    await world.directory.resolve(ME, other.ap4)
    assert not world.paths.asked(ResolveAp)[-1].hidden


async def test_own_addresses_are_asked_about_over_private_paths(
    autojump_clock: MockClock, world: World
) -> None:
    second = world.identities.create("second")
    for identity in (world.identities.get(ME), second):
        await world.directory.ask(ME, identity.ap6, path_index=1)
        asked = world.paths.asked(ResolveAp)[-1]
        assert asked.private
        assert asked.identity == identity.name
    await world.directory.ask(ME, world.published().ap6, path_index=1)
    assert not world.paths.asked(ResolveAp)[-1].private
