"""What a running node tells its owner and does for them over the control socket
(docs/spec/control.md).

:mod:`backend` implements the whole :class:`~phantom_tun.control.backend.ControlBackend` and hands
on what is longer: :mod:`probing` (ping), :mod:`why`, :mod:`netdb`, :mod:`pins`,
:mod:`identities` (a new address, what one waits for) and :mod:`health` (warnings). :mod:`shapes`
turns the node's objects into answers.
"""
