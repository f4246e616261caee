"""Routing tunnels (docs/spec/tunnel.md): what each node on a path does with blocks and with the
bulk links that come of them.

Begin with :mod:`switchboard` (who gets what arrives), then the roles: :mod:`relay`,
:mod:`exit_node`, :mod:`entry_node`, :mod:`owned_exit`, :mod:`owned_entry`; :mod:`connector` holds
the paths that stand.
"""
