"""`a3jax train` as one of a sweep's runs, which is not to outlive the sweep: `python -m a3jax.commands.trial PARENT ...`."""

import sys

from a3jax.devices.processes import die_with


def main() -> None:
    """Train as the rest of the command line says, as a child of process PARENT."""
    die_with(int(sys.argv[1]))
    from a3jax import cli

    cli.main(["train", *sys.argv[2:]])


if __name__ == "__main__":
    main()
