"""Every tunable of the links layer (docs/spec/links.md, "Limits")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Times in seconds, sizes in bytes, rates per second and neighbour."""

    # --- strangers ---
    handshake_deadline: float = 10.0
    """For a dialer to prove who it is after the upgrade."""
    handshake_steps: int = 8
    """TLS handshake computations between two turns of everything else."""
    request_deadline: float = 60.0
    """For TLS, from the TCP connection on, and then for each whole HTTP request."""
    idle_deadline: float = 75.0
    """For the next HTTP request to begin."""
    strangers: int = 512
    """Connections that didn't authenticate (yet)."""
    strangers_per_address: int = 64
    """Of those, from one IPv4 address or IPv6 /64."""

    # --- dialing ---
    dial_deadline: float = 10.0
    """From the TCP connection to the upgraded link."""
    dials: int = 256
    """At the same time, to everyone."""
    dials_for_other: int = 16
    """At the same time, because one neighbour asks for them."""
    waiting: int = 1024
    """Dials and openings that may wait for their turn."""

    # --- signalling ---
    neighbours: int = 2048
    """Neighbours with a link; beyond, one without uses in the most crowded network is let go."""
    neighbours_per_address: int = 64
    """Neighbours at one IPv4 address or IPv6 /64; beyond, new ones that dial us are turned away."""
    neighbours_per_network: int = 512
    """The same for an IPv4 /16 or IPv6 /32."""
    signalling_per_neighbour: int = 4
    """Links that one neighbour dialed; more than one is for the moment of replacement."""
    signal_queue: int = 256
    """One-way messages waiting to be sent to one neighbour."""
    calls_waiting: int = 64
    """Own calls to one neighbour without an answer yet."""
    calls_served: int = 32
    """Calls of one neighbour that are received, worked on or answered at one time."""
    calls_memory: int = 67_108_864
    """Bytes of calls of all neighbours, and of the answers to them until those are sent."""
    calls_memory_per_node: int = 1_048_576
    """Of those, of one neighbour."""
    call_patience: float = 20.0
    """For all chunks of a call."""
    call_deadline: float = 10.0
    signal_rate: float = 200.0
    signal_burst: float = 1000.0
    call_rate: float = 100.0
    call_burst: float = 400.0
    ask_rate: float = 20.0
    ask_burst: float = 64.0
    ping_rate: float = 1.0
    ping_burst: float = 10.0
    network_rates: float = 8.0
    """How many times as much, of each of these four, all neighbours in one IPv4 /16 or IPv6 /32 may
    send together. Node ids cost next to nothing, networks do."""
    ping_after: float = 10.0
    """Of silence, then a PING is sent."""
    dead_after: float = 30.0
    """Of silence, then the neighbour is taken for dead and all its links are closed."""
    signalling_idle: float = 600.0
    """Without a message and without bulk links in use, then the dialer ends the link."""

    # --- bulk ---
    relayed: int = 4000
    """Uses of neighbours that are joined with others at one time."""
    open_deadline: float = 15.0
    """For beginning a use of a bulk link, all attempts together."""
    bulk_per_neighbour: int = 2048
    """Bulk links on which one neighbour starts uses: a service may have 4,096 connections over two
    entry paths."""
    bulk_per_address: int = 2048
    """The same, of all neighbours at one IPv4 address or IPv6 /64."""
    bulk_per_network: int = 4096
    """The same, of all neighbours in one IPv4 /16 or IPv6 /32."""
    bulk_served: int = 12_288
    """The same, of all neighbours."""
    idle_bulk: int = 64
    """Idle links kept for one neighbour."""
    spares: int = 8
    """Idle links that are dialed ahead for one neighbour, at most."""
    spare_after: float = 10.0
    """After the first use there are none for so long, and uses of that time call for one at most:
    that is how paths begin, and a node that starts has more urgent things to do."""
    spare_window: float = 20.0
    """As many spares are kept as uses began in this time."""
    spare_active: float = 180.0
    """After the last use began, one spare is kept for this long."""
    bulk_idle: float = 240.0
    """Then the side that starts uses closes an idle link."""
    bulk_surplus: float = 60.0
    """Then it closes one beyond the spares it wants."""
    bulk_idle_other: float = 600.0
    """Then the other side does; later, so that it never closes a link that is just being used."""
    fin_deadline: float = 10.0
    """For the neighbour's FIN after ours, when nobody reads any more."""

    # --- TCP ---
    send_buffer: int | None = None
    """SO_SNDBUF; None leaves it to the kernel's autotuning."""
    receive_buffer: int | None = None
    """SO_RCVBUF; likewise."""
    unsent: int = 131_072
    """TCP_NOTSENT_LOWAT of bulk links: bytes the kernel takes beyond what it has in flight."""
    unsent_signalling: int = 16_384
    """The same for signalling links: what a tunnel block may have to wait for."""
    congestion_control: str | None = "cubic"
    """None leaves the system's default. bbr is slower here."""
    keepalive: float = 60.0
    """TCP_KEEPIDLE: silence after which the kernel looks whether the other host is still there.
    There is no TCP_USER_TIMEOUT: it would end a tunnel whose reader takes a break."""
