"""Building a routing path, as pure machines (docs/spec/path.md).

The owner draws members (``candidates``, ``guards``, ``suspicion``, ``selection``), puts them into
a ring (``ring``) and sends two setup arrays around it (``build``, on ``layers``). A member opens
its slot, covers the array with its layer and passes it on (``member``, with ``keys`` and
``replay``). What is left of it is in ``hop``. ``lifetimes`` and ``timing`` hold the numbers.

Nothing here does I/O or has a clock or randomness of its own, except that HPKE sealing and fresh
path-building keys draw theirs inside ``crypto``. ``net.paths`` has the sides that do.
"""
