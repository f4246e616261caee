"""Routing tunnels and what runs inside them, as pure machines (docs/spec/tunnel.md, session.md).

``blocks`` (tunnel blocks: what a hop remembers, what an owner derives), ``layers`` (stream keys of
hops and owners, packages); then the end-to-end layer: ``request``, ``answer``, ``replay``,
``channel``.
"""
