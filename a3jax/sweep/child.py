"""`a3jax train` as one of a sweep's runs, which is not to outlive the sweep: `python -m a3jax.sweep.child PARENT ...`."""

import sys

from a3jax.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))

    from a3jax.cli import main

    main(["train", *sys.argv[2:]])
