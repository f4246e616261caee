"""The network database over links (docs/spec/netdb.md): calls, lookups, storage, known nodes,
override commands. What is decided is decided in :mod:`phantom_tun.netdb`.

Begin with :mod:`service`, which puts the others together.
"""
