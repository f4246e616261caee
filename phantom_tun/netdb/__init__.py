"""The network database as pure machines: who is there, and who owns which AP address.

Kademlia over signed records (docs/spec/netdb.md). Nothing here does I/O, reads a clock or draws
randomness of its own. Read ``network`` and ``addresses`` (what is derived from what), ``proof`` and
``signing`` (what makes a record genuine), ``rules`` and ``verifier`` (every storage rule, in one
table), ``store`` (what we hold), ``contact``, ``prefixes``, ``table`` and ``book`` (whom we know),
``server`` (what we answer), ``lookup`` and ``votes`` (what we make of the answers of others),
``cachefile`` and ``holdings`` (what survives a restart). ``net.netdb.service`` puts it together.
"""
