"""From a command line to a running, unprivileged node.

Read :mod:`start` first: it is the order of events. The steps are in :mod:`account` and
:mod:`privileges` (whom to become, what to keep), :mod:`listeners` (the port, or sockets from the
service manager), :mod:`lock` (one daemon for each state directory), :mod:`underlay` (which
addresses others dial), :mod:`wiring` (the one place that knows the node and its interface),
:mod:`service` (signals, readiness, ordered shutdown), :mod:`notify`, :mod:`logs` and
:mod:`interpreter`. What it needs of memory is kept small by :mod:`slim` (which interpreter;
:mod:`compiling` prepares that) and :mod:`lean` (which modules), and :mod:`memory` gives back what
load has left behind. Worker processes are started by :mod:`workers` and run :mod:`worker_start`,
which is :mod:`worker_process`.
"""
