"""IP packets as bytes: what the interface needs to know about them, and nothing that does I/O.

Read in this order: :mod:`~phantom_tun.packet.checksum` (one's complement arithmetic),
:mod:`~phantom_tun.packet.header` (record layouts, precompiled structs, raw flow keys),
:mod:`~phantom_tun.packet.nat` (the symmetric TCP address table), :mod:`~phantom_tun.packet.rewrite`
(the one function that runs for every TCP packet), :mod:`~phantom_tun.packet.framing` (UDP and
ICMP echo messages back into packets), :mod:`~phantom_tun.packet.classify` (scapy: what is this
packet that no table knows?) and :mod:`~phantom_tun.packet.answer` (scapy: RST and ICMP errors).

Established flows never meet scapy, which takes a quarter of a millisecond to parse a packet.
"""
