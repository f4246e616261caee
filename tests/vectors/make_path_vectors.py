"""Writes ``path.json``: what one member does with its two arrays.

Everything but the sealed package is computed here a second time, from docs/spec alone: BLAKE2b and
HKDF with the standard library, AES-256-CTR with the ``openssl`` command, packing by hand. The
sealed package (HPKE draws its own randomness) and the locked one come from the product and are
checked by opening only.

    python tests/vectors/make_path_vectors.py
"""

import hashlib
import hmac
import json
import subprocess
from pathlib import Path

from phantom_tun.crypto.packages import lock
from phantom_tun.crypto.sealing import SealingKey, seal
from phantom_tun.crypto.signing import SigningKey

PREFIX = b"phantom-tun/1/"
SLOTS, HINT, SLOT = 24, 16, 16 + 1536
ARRAY = SLOTS * SLOT
WORK = 8
"""Bits of work that are proven."""


def h(domain, *parts):
    name = PREFIX + domain
    data = len(name).to_bytes(2, "big") + name
    for part in parts:
        data += len(part).to_bytes(8, "big") + part
    return hashlib.blake2b(data, digest_size=32).digest()


def hkdf(secret, label, context, length):
    info = len(PREFIX + label).to_bytes(2, "big") + PREFIX + label + context
    key = hmac.digest(bytes(32), secret, "sha256")
    block, out = b"", b""
    for counter in range(1, length // 32 + 2):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    return out[:length]


def keystream(secret, label, number, length):
    material = hkdf(secret, label, bytes([number]), 48)
    command = ["openssl", "enc", "-aes-256-ctr", "-K", material[:32].hex(), "-iv"]
    run = subprocess.run(
        [*command, material[32:].hex()], input=bytes(length), capture_output=True, check=True
    )
    return run.stdout[:length]


def array_hash(array, slot):
    rest = array[: slot * SLOT] + bytes(SLOT) + array[(slot + 1) * SLOT :]
    return hashlib.blake2b(rest, digest_size=32, person=b"setup array").digest()


def secret(label):
    return hashlib.sha256(b"path vector " + label).digest()


def work_nonce(node_id, sealed):
    """The first that proves WORK bits."""
    for number in range(1 << 40):
        nonce = number.to_bytes(8, "big")
        digest = h(b"setup work", nonce, node_id, sealed.ljust(4096, b"\0"))
        if not int.from_bytes(digest, "big") >> (256 - WORK):
            return nonce
    raise AssertionError


def node(number):
    """node id ‖ certificate hash ‖ IPv4-mapped address ‖ port"""
    address = bytes(10) + b"\xff\xff" + bytes([11, number, 0, 1])
    return secret(b"node %d" % number) + secret(b"cert %d" % number) + address + b"\x01\xbb"


def arriving(label, slot, content):
    noise = hashlib.shake_256(b"path vector array " + label).digest(ARRAY)
    return noise[: slot * SLOT] + content + noise[(slot + 1) * SLOT :]


def leaving(array, slot, number):
    layer = keystream(secret(b"layer"), b"layer", number, ARRAY)
    mixed = bytes(one ^ other for one, other in zip(array, layer, strict=True))
    fill = keystream(secret(b"fill"), b"fill", number, SLOT)
    return mixed[: slot * SLOT] + fill + mixed[(slot + 1) * SLOT :]


def main():
    network_id = secret(b"network")
    incoming, outgoing = secret(b"incoming")[:16], secret(b"outgoing")[:16]
    seed = b"".join(secret(b"key %d" % part) for part in range(3))
    construction = SigningKey(secret(b"construction"))
    expires = 1_800_003_600
    slots = {1: 5, 2: 17}
    hints = {number: h(b"hint", incoming, bytes([number]))[:HINT] for number in slots}

    blank = {number: arriving(b"%d" % number, slot, bytes(SLOT)) for number, slot in slots.items()}
    round1 = b"".join(
        (
            b"\x02",
            expires.to_bytes(8, "big"),
            node(1) + incoming,
            node(3) + outgoing,
            construction.public,
            secret(b"layer"),
            secret(b"fill"),
            secret(b"round 2"),
            array_hash(blank[1], slots[1]),
        )
    ).ljust(392, b"\0")
    content = b"".join(
        (
            b"\x01",
            array_hash(blank[2], slots[2]),
            node(4) + secret(b"path id 1")[:16],
            node(5) + secret(b"path id 2")[:16],
            secret(b"path secret"),
        )
    ).ljust(1520 - 64, b"\0")
    signature = construction.sign("setup round 2", network_id, content)
    sealed = {
        1: seal(round1, SealingKey(seed).public, "setup package", network_id),
        2: lock(secret(b"round 2"), content + signature, network_id),
    }
    nonce = work_nonce(secret(b"node 2"), sealed[1])
    contents = {1: nonce + sealed[1], 2: sealed[2]}
    rounds = {}
    for number, slot in slots.items():
        array = arriving(b"%d" % number, slot, hints[number] + contents[number])
        rounds[str(number)] = {
            "slot": slot,
            "hint": hints[number].hex(),
            "content": contents[number].hex(),
            "array": f"SHAKE-256('path vector array {number}') with hint and content in the slot",
            "array_hash": array_hash(array, slot).hex(),
            "leaving_sha256": hashlib.sha256(leaving(array, slot, number)).hexdigest(),
        }
    vector = {
        "made_by": "tests/vectors/make_path_vectors.py",
        "checked_by": "hashlib and hmac of the standard library, AES-CTR of the openssl command",
        "now": 1_800_000_000,
        "network_id": network_id.hex(),
        "path_key_seed": seed.hex(),
        "me": node(2).hex(),
        "sender": node(1).hex(),
        "incoming": incoming.hex(),
        "next": node(3).hex(),
        "outgoing": outgoing.hex(),
        "expires": expires,
        "neighbours": [
            [node(4).hex(), secret(b"path id 1")[:16].hex()],
            [node(5).hex(), secret(b"path id 2")[:16].hex()],
        ],
        "path_secret": secret(b"path secret").hex(),
        "work": WORK,
        "rounds": rounds,
    }
    Path(__file__).with_name("path.json").write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
