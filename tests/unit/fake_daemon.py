"""``phantom-tun`` whose daemon has a node without a network, for test_cli_lifecycle.py.

``FAKE_NODE=never`` makes a node that doesn't become ready.
"""

from __future__ import annotations

import os
from typing import Any

import trio

from phantom_tun.cli.main import main
from phantom_tun.daemon import start
from phantom_tun.testing.fake_node import FakeNode


def new_node(_config: Any, _profile: Any, listeners: Any, _interface: Any) -> FakeNode:
    node = FakeNode(listeners=listeners)
    node.backend.pid = os.getpid()
    if os.environ.get("FAKE_NODE") == "never":
        node.before_ready = trio.sleep_forever
    return node


if __name__ == "__main__":
    start.load_node = lambda: new_node
    main()
