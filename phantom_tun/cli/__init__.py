"""The ``phantom-tun`` command.

:mod:`main` puts it together; :mod:`exits` says what its exit codes mean; :mod:`session` finds the
daemon. :mod:`plain` and :mod:`running` lead past it to the daemon. The commands are in
:mod:`lifecycle` (up, down, run), :mod:`overview` (status, peers), :mod:`addresses` (address,
expose), :mod:`routing` (paths, tunnels), :mod:`probing` (ping, why, netdb), :mod:`pins`,
:mod:`settings` (config, network) and :mod:`lab`. What people see is drawn by :mod:`text`,
:mod:`drops` and :mod:`pictures`, and :mod:`completing` helps their shell. Whatever is slow to
import is imported by the command that needs it.
"""
