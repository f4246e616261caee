"""``python -m phantom_tun`` is the ``phantom-tun`` command."""

from phantom_tun.cli.main import main

if __name__ == "__main__":
    main()
