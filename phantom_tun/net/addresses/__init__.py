"""AP identities of this node and AP addresses of others (docs/spec/addresses.md): keys, leases,
routes, resolving and pinning. Everything goes through exit and entry paths, which are given.

Begin with :mod:`identities` and :mod:`publisher` (one's own) and :mod:`directory` (others').
"""
