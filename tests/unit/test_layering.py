"""The import rules (docs/design.md, "Layers"): imports go down only, and pure layers stay pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import phantom_tun

ROOT = Path(phantom_tun.__file__).parent
NAME = ROOT.name

LAYERS = {
    0: {"errors", "ids", "clock", "decoding", "endpoints"},
    1: {"wire", "crypto", "packet", "files", "apart", "places", "guard", "tasks", "queues"},
    2: {"netdb", "path", "tunnel", "profile", "config", "node_keys"},
    3: {"net", "tun"},
    4: {"node", "owner", "view", "control"},
    5: {"daemon", "cli", "__main__"},
}
SEAMLESS = {"lab", "testing", "analysis"}
"""On the side: they may import anything; nothing of the node imports them."""

NET = ("links", "netdb", "addresses", "tunnels", "paths", "sessions")
"""The packages of ``net``, from below."""

PURE = {"wire", "packet", "netdb", "path", "tunnel"}
IMPURE_MODULES = {"trio", "socket", "time", "random", "secrets", "threading", "subprocess"}
"""Not ``ssl``: TLS over memory buffers does no I/O, and its randomness can't be given anyway."""
CRYPTO_LIBRARIES = {"cryptography", "nacl"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """``phantom_tun/net/tunnels/relay.py`` → ``net``; ``phantom_tun/errors.py`` → ``errors``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer_of(part: str) -> int | None:
    return next((layer for layer, parts in LAYERS.items() if part in parts), None)


def imports(source: str) -> Iterator[str]:
    """Every module that ``source`` imports, by its full name, those in functions too.

    What stands under ``if TYPE_CHECKING`` counts: a type is a dependency as well.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what depends on what"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def net_allows(path: Path, imported: list[str]) -> bool:
    """Whether a module of ``net`` may import ``net.….…``, given without the project's name."""
    inside = path.relative_to(ROOT).parts[1]
    if inside.endswith(".py") or len(imported) < 2 or imported[1] not in NET:
        return inside == "__init__.py"
    return NET.index(imported[1]) <= NET.index(inside)


def violations(path: Path, source: str) -> list[str]:
    """The rules that a module's imports break."""
    part = part_of(path)
    layer = layer_of(part)
    broken = []
    for name in sorted(set(imports(source))):
        top, *rest = name.split(".")
        if top == NAME and rest:
            target, target_layer = rest[0], layer_of(rest[0])
            if part in SEAMLESS or (target == part != "net"):
                continue
            if target in SEAMLESS and part != "cli":
                broken.append(f"{name}: nothing of the node may need {target}")
            if layer is not None and target_layer is not None and target_layer > layer:
                broken.append(f"{name}: layer {layer} must not import layer {target_layer}")
            if part == target == "net" and not net_allows(path, rest):
                broken.append(f"{name}: in net only packages that come before may be imported")
            if {part, target} == {"net", "tun"}:
                broken.append(f"{name}: net and tun only meet in endpoints")
        if top in CRYPTO_LIBRARIES and part not in {"crypto", "testing"}:
            broken.append(f"{name}: only crypto imports {top}")
        if part in PURE and top in IMPURE_MODULES:
            broken.append(f"{name}: {part} is pure")
        if part == "crypto" and top in IMPURE_MODULES - {"secrets"}:
            broken.append(f"{name}: crypto has no clock, no input and no output")
        if name == "scapy.all":
            broken.append(f"{name}: slow and large; import the layers that are needed")
    if part in PURE and "os.urandom" in source:
        broken.append(f"os.urandom: {part} is given its randomness")
    if part != "decoding" and re.search(r"msgspec\.(Msgspec|Decode)Error", source):
        broken.append("msgspec's own errors aren't all it raises: use decoding.UNREADABLE")
    return broken


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_every_package_of_net_has_its_place() -> None:
    assert {path.name for path in (ROOT / "net").iterdir() if path.is_dir()} - {
        "__pycache__"
    } == set(NET)


def test_every_part_has_its_layer() -> None:
    unknown = {part_of(path) for path in modules()} - SEAMLESS - {"__init__"}
    assert {part for part in unknown if layer_of(part) is None} == set()


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("wire/x.py", "import phantom_tun.net.tunnels.relay", "layer 1 must not import layer 3"),
        ("netdb/x.py", "from phantom_tun import daemon", "layer 2 must not import layer 5"),
        ("net/links/x.py", "from phantom_tun.tun import device", "only meet in endpoints"),
        ("net/links/x.py", "from phantom_tun.testing import links", "may need testing"),
        ("net/links/x.py", "from cryptography import x509", "only crypto"),
        ("net/links/x.py", "from phantom_tun.net.paths import pool", "packages that come before"),
        ("net/tunnels/x.py", "import phantom_tun.net.sessions.ports", "packages that come before"),
        ("net/paths/x.py", "from phantom_tun import net", "packages that come before"),
        ("cli/x.py", "def f():\n    import nacl.secret", "only crypto"),
        ("path/x.py", "import time", "path is pure"),
        ("tunnel/x.py", "from trio import sleep", "tunnel is pure"),
        ("packet/x.py", "import os\nkey = os.urandom(16)", "given its randomness"),
        ("tun/x.py", "from scapy.all import IP", "slow and large"),
        ("crypto/x.py", "import time", "no clock"),
        (
            "wire/x.py",
            "try:\n    f()\nexcept msgspec.MsgspecError:\n    pass",
            "decoding.UNREADABLE",
        ),
        ("net/x.py", "e = msgspec.DecodeError", "decoding.UNREADABLE"),
    ],
)
def test_the_rules_notice(path: str, source: str, complaint: str) -> None:
    assert any(complaint in broken for broken in violations(ROOT / path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("net/x.py", "import trio\nfrom phantom_tun.path import build"),
        ("crypto/x.py", "from cryptography import x509\nimport ssl"),
        ("cli/x.py", "from phantom_tun.lab import lifecycle"),
        ("wire/x.py", "from phantom_tun.errors import WireError\nfrom phantom_tun.wire import a"),
    ],
)
def test_the_rules_allow(path: str, source: str) -> None:
    assert violations(ROOT / path, source) == []
