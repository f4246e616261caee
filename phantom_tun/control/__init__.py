"""The control socket: how people and programs talk to a running node on the same machine.

One JSON line in, any number of event lines and one last line out, over a Unix socket that only
root, the node's own user and a configured group may use (docs/spec/control.md). Read
:mod:`model` (what is answered), :mod:`schema` (what can be asked), :mod:`backend` (what a node
implements), :mod:`dispatch`, :mod:`server`, :mod:`client`.
"""
