"""`a3jax train` as one of a sweep's runs, which is not to outlive the sweep: `python -m a3jax.commands.trial PARENT ...`."""

import sys

from a3jax.devices.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))

    from a3jax.cli import main

    main(["train", *sys.argv[2:]])
