"""The node's configuration: one TOML file, every setting with a default and an explanation.

The structs are the only source: :func:`render` writes the commented file that
``phantom-tun config default`` prints from the descriptions below. Decoding is strict; what isn't
right ends in a :class:`ConfigError` that names the file, the key and what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from phantom_tun import places
from phantom_tun.decoding import in_words
from phantom_tun.errors import ConfigError
from phantom_tun.ids import NodeId

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CONFIG_MAX_BYTES = 256 * 1024
_COMMENT_COLUMNS = 78
_NODE_ID = re.compile("[0-9a-fA-F]{64}")
_Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}$")]
_Hops = Annotated[int, Meta(ge=0, le=8)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, and a misspelt key is an error."""


class NodeConfig(_Section, frozen=True):
    """This machine in the network."""

    state_dir: Annotated[
        Path, Meta(description="Where keys, identities and known nodes are kept (mode 0700).")
    ] = msgspec.field(default_factory=places.state_dir)
    listen: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=16, description="Addresses that other nodes can dial."),
    ] = ("0.0.0.0", "::")  # noqa: S104 - a node is there to be dialed
    port: Annotated[
        int, Meta(ge=1, le=65535, description="The port; anything but 443 is easier to block.")
    ] = 443
    advertise: Annotated[
        tuple[str, ...],
        Meta(
            max_length=16,
            description="Public addresses to publish; empty: those the default routes use.",
        ),
    ] = ()
    dialable: Annotated[
        bool,
        Meta(description="false: nothing can reach the port from outside (NAT, firewall)."),
    ] = True
    relay_only: Annotated[
        bool, Meta(description="Relay for others only: no interface, no AP addresses, no root.")
    ] = msgspec.field(default_factory=places.is_relay_only)
    user: Annotated[
        str,
        Meta(description='Name or uid to run as when started by root; "": keep the user.'),
    ] = "phantom-tun"
    families: Annotated[
        tuple[str, ...],
        Meta(
            max_length=64,
            description="Node ids of your other nodes: never in paths of this one. Told to nobody.",
        ),
    ] = ()
    family_names: Annotated[
        tuple[_Name, ...],
        Meta(
            max_length=4,
            description="Names of your own, the same on all your nodes: published as tags, so that "
            "nobody's path has two of them. Everybody sees then that they belong together.",
        ),
    ] = ()
    web_page: Annotated[
        str,
        Meta(description='HTML file shown to ordinary visitors of the port; "": built in.'),
    ] = ""

    def __post_init__(self) -> None:
        _check_addresses("listen", self.listen)
        _check_addresses("advertise", self.advertise)
        for text in self.advertise:
            if ipaddress.ip_address(text).is_unspecified:
                raise ValueError(f"advertise: {text} is no address that others can dial")
        _check_node_ids("families", self.families)

    def own_web_page(self) -> bytes | None:
        """What :attr:`web_page` names; ``None`` for the one that is built in.

        :raises ConfigError: it can't be read.
        """
        if not self.web_page:
            return None
        try:
            return Path(self.web_page).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"node.web_page: can't read {self.web_page}: {error.strerror}"
            ) from error

    @property
    def listen_addresses(self) -> tuple[Address, ...]:
        """:attr:`listen`, parsed."""
        return tuple(ipaddress.ip_address(text) for text in self.listen)

    @property
    def advertised_addresses(self) -> tuple[Address, ...]:
        """:attr:`advertise`, parsed."""
        return tuple(ipaddress.ip_address(text) for text in self.advertise)

    @property
    def family_ids(self) -> frozenset[NodeId]:
        """:attr:`families`, as node ids."""
        return _node_ids(self.families)


class NetworkConfig(_Section, frozen=True):
    """Which network this node belongs to."""

    profile: Annotated[Path, Meta(description="The network profile, the same for all members.")] = (
        msgspec.field(default_factory=places.profile_file)
    )
    overrides: Annotated[
        bool,
        Meta(description="false: obey no override commands of the network, only pass them on."),
    ] = True


class InterfaceConfig(_Section, frozen=True):
    """The network interface that applications use."""

    enabled: Annotated[bool, Meta(description="false: no interface on this machine.")] = True
    name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_-]{1,15}$", description="Its name."),
    ] = "phantom0"
    mtu: Annotated[
        int,
        Meta(ge=1280, le=65535, description="Large is fast: packets never leave this machine."),
    ] = 65535
    require_filter: Annotated[
        bool,
        Meta(
            description="false: run even where AP addresses can't be kept off other networks, "
            "whose members can then find out that this machine has them."
        ),
    ] = True
    answer_echo: Annotated[bool, Meta(description="Answer pings to your AP addresses.")] = True
    connect_early: Annotated[
        bool,
        Meta(
            description="Tell programs at once that they are connected to a service that was there "
            "less than two minutes ago: saves a round trip; if it is gone, they see a reset."
        ),
    ] = True
    keep_sessions: Annotated[
        bool,
        Meta(
            description="Let connections to one node that follow each other within seconds share "
            "a tunnel: faster; nodes on the way can tell that they belong together."
        ),
    ] = True
    resume_memory_mib: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="What connections may keep in memory of what the far side hasn't confirmed "
            "yet, so that they go on when a node on their way dies; 0: they are reset then.",
        ),
    ] = 128
    ephemeral_callers: Annotated[
        tuple[_Name, ...],
        Meta(
            max_length=64,
            description="Names of your AP addresses that call without showing who they are.",
        ),
    ] = ()
    udp_idle_s: Annotated[
        int, Meta(ge=5, le=3600, description="Seconds until a silent UDP flow is closed.")
    ] = 60


class PathsConfig(_Section, frozen=True):
    """Routing paths: more hops hide better, fewer are faster."""

    exit_hops: Annotated[
        _Hops | None,
        Meta(description="Nodes between you and what you connect to, 0 to 8; unset: the profile's"),
    ] = None
    entry_hops: Annotated[
        _Hops | None,
        Meta(description="Nodes between you and who connects to you, 0 to 8; unset: the profile's"),
    ] = None
    exit_paths: Annotated[
        int, Meta(ge=1, le=16, description="Exit paths kept ready for each AP address.")
    ] = 2
    entry_paths: Annotated[
        int, Meta(ge=1, le=16, description="Entry paths kept ready for each AP address.")
    ] = 2
    lifetime_minutes: Annotated[
        int,
        Meta(
            ge=10,
            le=1440,
            description="About how long a path lives until another replaces it: from half to one "
            "and a half times as long, drawn for each.",
        ),
    ] = 90


class TunnelsConfig(_Section, frozen=True):
    """Routing tunnels built ahead of need, so that connecting takes one round trip."""

    ready_min: Annotated[
        int, Meta(ge=0, le=64, description="Ready tunnels kept in each path when nothing happens.")
    ] = 2
    ready_max: Annotated[
        int, Meta(ge=1, le=256, description="The most that are kept while many are used.")
    ] = 16

    def __post_init__(self) -> None:
        if self.ready_min > self.ready_max:
            raise ValueError(
                f"ready_min: {self.ready_min} is more than ready_max, which is {self.ready_max}"
            )


class GuardsConfig(_Section, frozen=True):
    """Who may stand next to you in a path."""

    trusted: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description="Node ids to prefer next to you, and to ask first."),
    ] = ()

    def __post_init__(self) -> None:
        _check_node_ids("trusted", self.trusted)

    @property
    def trusted_ids(self) -> frozenset[NodeId]:
        """:attr:`trusted`, as node ids."""
        return _node_ids(self.trusted)


class LimitsConfig(_Section, frozen=True):
    """What this node does for others at most; beyond it says nothing and stays up."""

    links: Annotated[
        int, Meta(ge=16, le=65535, description="Open links to other nodes, both ways.")
    ] = 4000
    relayed_paths: Annotated[
        int, Meta(ge=0, le=65535, description="Paths of others that run through this node.")
    ] = 2000
    relayed_tunnels: Annotated[
        int, Meta(ge=0, le=65535, description="Tunnels of others that run through this node.")
    ] = 4000


class RelayConfig(_Section, frozen=True):
    """How this machine is used for others' tunnels."""

    workers: Annotated[
        int,
        Meta(ge=1, le=64, description="Processes that carry them: 1, or one for each core."),
    ] = 1


class ControlConfig(_Section, frozen=True):
    """The socket that the command-line tool talks to."""

    socket: Annotated[Path, Meta(description="Its place; PHANTOM_TUN_SOCKET overrides it.")] = (
        msgspec.field(default_factory=places.control_socket)
    )
    group: Annotated[
        str,
        Meta(description='Members may use it, besides root and the node\'s user; "": nobody.'),
    ] = ""


class LogConfig(_Section, frozen=True):
    """What is written to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="debug shows other nodes' ids and addresses: don't share it."),
    ] = "info"
    json: Annotated[bool, Meta(description="One JSON object on each line.")] = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. Sections and keys that are left out have their defaults."""

    node: NodeConfig = msgspec.field(default_factory=NodeConfig)
    network: NetworkConfig = msgspec.field(default_factory=NetworkConfig)
    interface: InterfaceConfig = msgspec.field(default_factory=InterfaceConfig)
    paths: PathsConfig = msgspec.field(default_factory=PathsConfig)
    tunnels: TunnelsConfig = msgspec.field(default_factory=TunnelsConfig)
    guards: GuardsConfig = msgspec.field(default_factory=GuardsConfig)
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    relay: RelayConfig = msgspec.field(default_factory=RelayConfig)
    control: ControlConfig = msgspec.field(default_factory=ControlConfig)
    log: LogConfig = msgspec.field(default_factory=LogConfig)

    @property
    def wants_interface(self) -> bool:
        """Whether this node opens an interface."""
        return self.interface.enabled and not self.node.relay_only


def load(path: Path | None = None) -> Config:
    """Read the configuration.

    :param path: a file that must exist; ``None`` means what ``PHANTOM_TUN_CONFIG`` names (must
        exist too), else the default place, where a missing file means all defaults.
    :raises ConfigError: naming file, key and fix.
    """
    named = path or places.config_from_environment()
    source = (named or places.config_file()).absolute()
    try:
        with source.open("rb") as file:
            data = file.read(_CONFIG_MAX_BYTES + 1)
    except FileNotFoundError as error:
        if named is None:
            return Config()
        raise ConfigError(
            f"there is no configuration file {source}: "
            f"'{_making(source.parent)}phantom-tun config default > {source}' writes one"
        ) from error
    except OSError as error:
        raise ConfigError(f"can't read the configuration {source}: {error.strerror}") from error
    return parse(data, source=source)


def _making(directory: Path) -> str:
    return "" if directory.is_dir() else f"mkdir -p {directory}; "


def parse(data: bytes, *, source: Path) -> Config:
    """Check the bytes of a configuration file; relative paths in it are relative to ``source``.

    :raises ConfigError: naming ``source``, key and fix, a line for each key that is wrong.
    """
    if len(data) > _CONFIG_MAX_BYTES:
        raise ConfigError(f"{source} is larger than a configuration can be")
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} isn't a configuration: it is no UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} isn't valid TOML: {error}") from error

    def decode_path(kind: type, value: object) -> Path:
        if kind is not Path:
            raise NotImplementedError(kind)
        if not isinstance(value, str) or not value:
            raise ValueError("Expected a path")
        return source.parent / _at_home(value)

    faults: list[str] = []
    while True:
        try:
            config = msgspec.convert(content, Config, dec_hook=decode_path)
            break
        except msgspec.ValidationError as error:
            faults.append(f"{source}: {_explain(str(error))}")
            if not _without(content, str(error)):
                break
    if faults:
        raise ConfigError("\n".join(faults))
    if config.node.web_page:
        try:
            page = str(source.parent / _at_home(config.node.web_page))
        except ValueError as error:
            raise ConfigError(f"{source}: node.web_page: {error}") from error
        config = msgspec.structs.replace(
            config, node=msgspec.structs.replace(config.node, web_page=page)
        )
    return config


def _at_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"nobody's home directory is meant by {path!r}") from error


def render(config: Config, *, comments: bool = True) -> str:
    """The TOML text of ``config``, with every setting and (by default) its explanation."""
    import textwrap  # noqa: PLC0415 - a daemon doesn't need it

    lines: list[str] = []
    if comments:
        lines += ["# phantom-tun: configuration of one node. What is left out has its default.", ""]
    for section in Config.__struct_fields__:
        values = getattr(config, section)
        if comments:
            lines.append(f"# {type(values).__doc__}")
        lines.append(f"[{section}]")
        for key, description in _descriptions(type(values)):
            if comments:
                lines += [f"# {line}" for line in textwrap.wrap(description, _COMMENT_COLUMNS)]
            value = getattr(values, key)
            lines.append(f"# {key} = 3" if value is None else f"{key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _descriptions(section: type) -> Iterator[tuple[str, str]]:
    """Each key of a section with its explanation, in order."""
    hints = get_type_hints(section, include_extras=True)
    for key in section.__struct_fields__:  # type: ignore[attr-defined]
        texts = [meta.description for meta in hints[key].__metadata__ if meta.description]
        yield key, " ".join(texts)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            # A JSON string is a TOML basic string, except that TOML wants DEL escaped.
            return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.(?P<at>.*)`)?")
_AT = re.compile(r"(?P<what>.*) - at `\$\.(?P<at>.*)`", re.DOTALL)


def _without(content: dict[str, Any], message: str) -> bool:
    """Take out what the decoder complains of, to see what else is wrong; false if it can't be told.

    The sections' own checks name the key, as "key: what is wrong".
    """
    if unknown := _UNKNOWN.fullmatch(message):
        keys = [unknown["at"], unknown["key"]] if unknown["at"] else [unknown["key"]]
    elif located := _AT.fullmatch(message):
        keys = located["at"].partition("[")[0].split(".")
        key, separator, _ = located["what"].partition(": ")
        keys += [key] if separator and len(keys) == 1 else []
    else:
        return False
    *sections, last = keys
    for section in sections:
        inner = content.get(section)
        if not isinstance(inner, dict):
            return False
        content = inner
    return content.pop(last, None) is not None


def _explain(message: str) -> str:
    """Turn the decoder's message into a sentence that names the key and what is allowed."""
    if unknown := _UNKNOWN.fullmatch(message):
        key, section = unknown["key"], unknown["at"]
        known = Config.__struct_fields__
        if section is not None:
            known = getattr(Config(), section).__struct_fields__
        place = f"in [{section}]" if section is not None else "as a section"
        import difflib  # noqa: PLC0415 - a daemon that runs doesn't need it

        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        return (
            f"{key!r} is not known {place}; {hint} 'phantom-tun config default' shows all settings"
        )
    if (said := in_words(message, Config)) is not None:
        return said
    if located := _AT.fullmatch(message):
        what, at = located["what"], located["at"]
        key, separator, rest = what.partition(": ")
        # The sections' own checks name the key themselves, as "key: what is wrong".
        if separator and "." not in at:
            return f"{at}.{key}: {rest}"
        return f"{at}: {what[:1].lower() + what[1:]}"
    return message


def _check_addresses(key: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ValueError(f"{key}: {text!r} is not an IPv4 or IPv6 address") from None


def _check_node_ids(key: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        if _NODE_ID.fullmatch(text) is None:
            raise ValueError(f"{key}: {text!r} is not a node id, which is 64 hex digits")


def _node_ids(texts: tuple[str, ...]) -> frozenset[NodeId]:
    return frozenset(NodeId(bytes.fromhex(text)) for text in texts)
