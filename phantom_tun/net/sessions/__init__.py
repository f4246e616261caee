"""Connections between two AP identities (docs/spec/session.md): sealed requests, TLS from end to
end, frames.

Begin with :mod:`service`; :mod:`opening` is the caller's side, :mod:`serving` the callee's,
:mod:`secure_tunnel` what both then have: it begins in :mod:`handshake`, serves several connections
with :mod:`further`, and ends in :mod:`ending`.
"""
