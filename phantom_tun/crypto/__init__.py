"""Every key operation of the protocol; the only package that imports a cryptography library.

Nothing here is a home-made primitive: each module composes primitives of ``cryptography``,
``PyNaCl``, ``hashlib`` or ``ssl`` the way docs/spec/crypto.md says. Read ``hashes`` (domains and
key derivation), ``signing``, ``sealing`` (HPKE), ``packages`` (AES-GCM), ``streams`` (the chained
per-hop stream and the tunnel block), ``certificates`` (TLS).

Failure raises :class:`~phantom_tun.errors.CryptoError`; nothing returns None or False instead.
"""
