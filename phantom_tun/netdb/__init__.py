"""The network database as pure machines: who is there, and who owns which AP address.

Kademlia over signed records (docs/spec/netdb.md). Nothing here does I/O, reads a clock or draws
randomness of its own. Read ``network`` and ``addresses`` (what is derived from what), ``proof``
and ``signing`` (what makes a record genuine), ``rules`` (every storage rule, in one table).
"""
