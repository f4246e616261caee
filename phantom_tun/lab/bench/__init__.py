"""The benchmark behind ``scripts/bench``: this and other systems, in one topology, in one run.

Every system under test is brought up in namespaces joined by the lab's switch, and stays up; then
all are measured in turns, figure by figure and repetition by repetition, so that a noisy moment of
the machine hits none of them alone. What is compared are ratios within a repetition.

Read in this order: :mod:`~phantom_tun.lab.bench.model` (what a run is and what comes out),
:mod:`~phantom_tun.lab.bench.scenarios` (what is measured where),
:mod:`~phantom_tun.lab.bench.load` (the one load generator), :mod:`~phantom_tun.lab.bench.cost`
(processor time and memory, from ``/proc``), :mod:`~phantom_tun.lab.bench.hosts` (namespaces for
systems that aren't ours), :mod:`~phantom_tun.lab.bench.systems` (what a system is; ``ours``,
``tor``, ``yggdrasil``, ``i2pd``, ``chain``: the systems),
:mod:`~phantom_tun.lab.bench.measuring` (the figures), :mod:`~phantom_tun.lab.bench.growth` (ours at
several sizes), :mod:`~phantom_tun.lab.bench.goals` (what was to be reached),
:mod:`~phantom_tun.lab.bench.report` and :mod:`~phantom_tun.lab.bench.plots` (tables and pictures),
and :mod:`~phantom_tun.lab.bench.run`, which puts them together.
"""
