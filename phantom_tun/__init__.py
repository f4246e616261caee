"""phantom-tun: the Phantom anonymity protocol behind an ordinary network interface.

Read from the bottom: ``errors``, ``ids``, ``clock`` (words used everywhere); ``wire``, ``crypto``,
``packet`` (bytes and keys); ``netdb``, ``path``, ``tunnel`` (the protocol as pure machines);
``net``, ``tun`` (the machines connected to sockets and to the interface); ``node`` (one running
node); ``control``, ``daemon``, ``cli`` (how people run it). Imports go down only.
"""

__version__ = "0.1.0"
