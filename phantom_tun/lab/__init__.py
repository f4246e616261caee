"""Whole anonymous networks on one machine, for people and for tests.

A *lab* is a set of network namespaces joined by one switch. In each of them runs one real
``phantom-tun run`` process with its own ``phantom0``. Every node's underlay address lies in its own
IPv4 /16 and IPv6 /32, so that no diversity rule has to be relaxed.

Read in this order: :mod:`~phantom_tun.lab.plan` (what is asked for, checked, and the addresses
that follow from it), :mod:`~phantom_tun.lab.namespaces` and :mod:`~phantom_tun.lab.processes`
(the two kernel objects a lab consists of), :mod:`~phantom_tun.lab.topology` (cables and switch),
:mod:`~phantom_tun.lab.switch` and :mod:`~phantom_tun.lab.switch_process` (the switch with delay),
:mod:`~phantom_tun.lab.provision` (keys, profile, configuration files),
:mod:`~phantom_tun.lab.record` (what later commands need to know),
:mod:`~phantom_tun.lab.readiness` (when is a lab ready?), :mod:`~phantom_tun.lab.lifecycle`, which
puts them together, and :mod:`~phantom_tun.lab.nodes` (what can be done to a node).

:mod:`~phantom_tun.lab.demo` is the demonstration, with :mod:`~phantom_tun.lab.demo_steps`,
:mod:`~phantom_tun.lab.capture` (recordings) and :mod:`~phantom_tun.lab.evidence` (conclusions).
"""
