"""Connections between nodes (docs/spec/links.md): TLS on one port, a web page for strangers, one
signalling link and pooled bulk links for each neighbour, and the hot loop that joins two of them.

Begin with :mod:`connection` (what a link needs from below), :mod:`bulk` and :mod:`signalling` (the
two kinds of link), :mod:`neighbours` (all of them), :mod:`splice` (what a relay does with bytes,
and :mod:`rest` while there are none);
:mod:`workers` and :mod:`worker` are the same on more than one core.
"""
