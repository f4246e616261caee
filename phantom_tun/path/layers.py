"""How arrays are covered and their slots found (docs/spec/path.md, "Array").

Every member XORs the whole array with a keystream of its own and overwrites its own slot, so two
members that meet the same array at different places see nothing in common. The owner covers each
slot beforehand with the keystreams of all members before its receiver.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from phantom_tun.crypto.hashes import array_hash, h
from phantom_tun.crypto.packages import keystream, xor_layer
from phantom_tun.errors import ProtocolViolation
from phantom_tun.ids import ConnectionId
from phantom_tun.wire.setup import ARRAY_LEN, HINT_LEN, SLOT_LEN, SLOTS, slot_range


@dataclass(frozen=True, slots=True)
class Cover:
    """The two secrets with which one member treats the arrays of one build."""

    layer_secret: bytes = field(repr=False)
    fill_secret: bytes = field(repr=False)

    def layer(self, number: int) -> bytes:
        """Keystream over the whole array in round ``number``."""
        return keystream(self.layer_secret, "layer", bytes([number]), ARRAY_LEN)

    def fill(self, number: int) -> bytes:
        """What the member's slot is overwritten with in round ``number``."""
        return keystream(self.fill_secret, "fill", bytes([number]), SLOT_LEN)

    def apply(self, array: bytes, slot: int, number: int) -> bytes:
        """What the member passes on when it found its own slot at ``slot``."""
        covered = bytearray(xor_layer(array, self.layer_secret, "layer", bytes([number])))
        covered[slot_range(slot)] = self.fill(number)
        return bytes(covered)


def hint(connection: ConnectionId, number: int) -> bytes:
    """16 bytes by which the receiver of ``connection`` finds its slot in round ``number``."""
    return h("hint", connection, bytes([number]))[:HINT_LEN]


def find_slot(array: bytes, connection: ConnectionId, number: int) -> int:
    """Number of the one slot that begins with the hint.

    :raises ProtocolViolation: none does, or several.
    """
    wanted = hint(connection, number)
    found = [slot for slot in range(SLOTS) if array.startswith(wanted, slot * SLOT_LEN)]
    if len(found) != 1:
        raise ProtocolViolation("no slot, or more than one, is for this connection")
    return found[0]


def hash_without(array: bytes, slot: int) -> bytes:
    """Hash of ``array`` with ``slot`` zeroed."""
    rest = bytearray(array)
    rest[slot_range(slot)] = bytes(SLOT_LEN)
    return array_hash(rest)


def xor(left: bytes | bytearray, right: bytes | bytearray) -> bytes:
    """Of two byte strings of one length."""
    joined = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return joined.to_bytes(len(left), "little")


class ArrayMaker:
    """The owner's side of one round: fills an array from the last member to the first.

    A slot that a member is to receive as *s* lies in the first array as *s* XOR the layers of all
    members before; once received it has to be reckoned as that member's fill. Both are kept in
    ``_start``, which is the array as it would have to leave the owner.
    """

    def __init__(self, covers: list[Cover], slots: list[int], number: int, unused: bytes) -> None:
        """``slots[i]`` is the slot of member i; ``unused`` the ``ARRAY_LEN`` random bytes that
        unused slots are taken from."""
        self._slots = slots
        before = bytes(ARRAY_LEN)
        self._before = [before]
        for cover in covers:
            before = xor(before, cover.layer(number))
            self._before.append(before)
        start = bytearray(unused)
        for index, cover in enumerate(covers):
            place = slot_range(slots[index])
            start[place] = xor(cover.fill(number), self._before[index + 1][place])
        self._start = start
        self.returned = xor(self._start, before)
        """The array as the last member must give it back."""

    def hash_at(self, index: int) -> bytes:
        """What member ``index`` will find when it hashes the array without its own slot. All later
        members must have been given theirs by :meth:`put`."""
        return hash_without(xor(self._start, self._before[index]), self._slots[index])

    def put(self, index: int, content: bytes) -> None:
        """Have member ``index`` receive the ``SLOT_LEN`` bytes ``content`` in its slot."""
        place = slot_range(self._slots[index])
        self._start[place] = xor(content, self._before[index][place])

    @property
    def first(self) -> bytes:
        """The array as it leaves the owner."""
        return bytes(self._start)
