"""Building routing paths, and being built into others' (docs/spec/path.md): what sends and receives
the arrays that :mod:`phantom_tun.path` makes and opens.

Begin with :mod:`builder` (one path), :mod:`pool` (always enough of one kind), :mod:`member`
(others' paths).
"""
