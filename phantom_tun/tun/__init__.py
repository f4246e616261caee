"""The interface: applications' packets come in at a TUN device and leave as streams and messages.

Read in this order: :mod:`~phantom_tun.tun.settings` and :mod:`~phantom_tun.tun.plan` (what is
configurable, which addresses mean what), :mod:`~phantom_tun.tun.device` and
:mod:`~phantom_tun.tun.host` (the device; addresses, routes and firewall around it),
:mod:`~phantom_tun.tun.pump` (the thread that moves every packet), :mod:`~phantom_tun.tun.desk`
(decides about packets that no table knows), :mod:`~phantom_tun.tun.outbound`,
:mod:`~phantom_tun.tun.inbound` and :mod:`~phantom_tun.tun.bridge` (TCP),
:mod:`~phantom_tun.tun.datagrams` (UDP and ICMP echo), :mod:`~phantom_tun.tun.interface` (all of it
joined). ``docs/spec/interface.md`` tells the same for people.

Two threads: the pump's, which reads the device and owns the decision about each packet, and trio's,
which owns every table but writes to the device as well. What one hands to the other goes through
:class:`~phantom_tun.tun.flows.MessageQueue` or ``TrioToken.run_sync_soon``.
"""
