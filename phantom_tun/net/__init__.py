"""The protocol on sockets, in trio: each package drives pure machines of its own.

From below: :mod:`links`, :mod:`netdb`, :mod:`addresses`, :mod:`tunnels`, :mod:`paths`,
:mod:`sessions`; a package imports none that comes later.
"""
