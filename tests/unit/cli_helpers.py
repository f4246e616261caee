"""Running ``phantom-tun`` in this process, against a node without a network."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from phantom_tun.cli.main import main
from phantom_tun.control.client import ControlClient
from phantom_tun.control.listener import Access, bind_control_socket
from phantom_tun.control.model import PingReply, PingSummary
from phantom_tun.control.server import ControlServer
from phantom_tun.testing.fake_backend import FakeBackend


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Shell:
    """Where commands are typed."""

    capture: pytest.CaptureFixture[str]
    socket: Path

    def run(self, *arguments: str) -> Outcome:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["--socket", str(self.socket), *arguments])
        return self._outcome(ended.value.code)

    def bare(self, *arguments: str) -> Outcome:
        """Without naming a socket."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return self._outcome(ended.value.code)

    def _outcome(self, code: Any) -> Outcome:
        written = self.capture.readouterr()
        return Outcome(0 if code is None else int(code), written.out, written.err)


@contextmanager
def answering(path: Path, backend: FakeBackend) -> Iterator[threading.Event]:
    """A control server in a thread; the event is set when it was asked to shut down."""
    asked_to_stop = threading.Event()
    started = threading.Event()
    tokens: list[trio.lowlevel.TrioToken] = []
    scope = trio.CancelScope()
    access = Access(os.geteuid())
    listener = bind_control_socket(path, access)

    async def serve() -> None:
        server = ControlServer(backend, access, asked_to_stop.set)
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, listener)
                tokens.append(trio.lowlevel.current_trio_token())
                started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert started.wait(10)
        yield asked_to_stop
    finally:
        tokens[0].run_sync_soon(scope.cancel)
        thread.join()


def pinged(monkeypatch: pytest.MonkeyPatch, *replies: PingReply, interrupt: bool = False) -> None:
    """Have commands answered so: ``replies``, and then Ctrl-C or a result."""

    def call(_client: Any, _request: Any, on_event: Any) -> PingSummary:
        for reply in replies:
            on_event(reply)
        if interrupt:
            raise KeyboardInterrupt
        return PingSummary.of([])

    monkeypatch.setattr(ControlClient, "call", call)
