"""The subcommands of `a3jax`: each a dataclass of its options, whose `run` returns what `--json` prints."""
