"""What other nodes say about one node, in a whole network."""

from __future__ import annotations

import trio
from netdb_world import everybody_knows, memory_network, start, wait_until
from trio.testing import MockClock

from phantom_tun.net.netdb.witnesses import MOST_WITNESSES


async def test_the_closest_nodes_tell_which_edition_they_know(autojump_clock: MockClock) -> None:
    async with memory_network() as network:
        asker, target, *others = start(network, 14)
        await wait_until(everybody_knows([asker, target, *others], 13), 5)
        target_id = target.own_record.node_id
        said = await asker.witnesses(target_id)
        assert len(said) == MOST_WITNESSES
        asked = {witness.node_id for witness in said}
        assert len(asked) == MOST_WITNESSES
        assert not asked & {target_id, asker.own_record.node_id}
        assert all(
            witness.record is not None and witness.record.encoded == target.own_record.encoded
            for witness in said
        )


async def test_nobody_knows_a_node_that_isnt_there(autojump_clock: MockClock) -> None:
    async with memory_network() as network:
        asker, *services = start(network, 6)
        await wait_until(everybody_knows([asker, *services], 5), 5)
        said = await asker.witnesses(type(asker.own_record.node_id)(bytes(32)))
        assert len(said) == 5
        assert all(witness.record is None and not witness.failure for witness in said)


async def test_who_doesnt_answer_is_said(autojump_clock: MockClock) -> None:
    async with memory_network() as network:
        asker, target, dead, *services = start(network, 6)
        await wait_until(everybody_knows([asker, target, dead, *services], 5), 5)
        search = asker._searcher.search

        async def search_and_kill(node_id: bytes) -> object:
            found = await search(node_id)
            network.stop(dead.own_record.node_id)
            await trio.sleep(0)
            return found

        asker._searcher.search = search_and_kill  # type: ignore[assignment,method-assign]
        said = await asker.witnesses(target.own_record.node_id)
        failed = [witness.node_id for witness in said if witness.failure]
        assert failed == [dead.own_record.node_id]
        assert len(said) == 4
