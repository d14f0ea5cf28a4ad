"""The tasks by name. A new one is a file whose `read` is named here, and any options of its own in `Options`."""

import importlib
from collections import Counter

from a3jax.evaluate.options import Options, Read, Ready

TASKS = {
    "likelihood": "a3jax.evaluate.by_order",
    "stories": "a3jax.evaluate.stories",
    "code": "a3jax.evaluate.code",
    "continuation": "a3jax.evaluate.judged",
    "hellaswag": "a3jax.evaluate.local_data",
    "winogrande": "a3jax.evaluate.local_data",
    "social_iqa": "a3jax.evaluate.local_data",
    "piqa": "a3jax.evaluate.local_data",
    "triviaqa": "a3jax.evaluate.local_data",
    "humaneval": "a3jax.evaluate.humaneval",
    "humaneval_infill": "a3jax.evaluate.humaneval",
}
"""Name -> the module whose `read` reads its data. Modules are imported when they are used."""


def read_task(name: str, options: Options) -> Ready:
    """Read what the task `name` is about. Raises `UserError` for data or options that cannot be."""
    read: Read = importlib.import_module(TASKS[name]).read
    return read(name, options, Counter())
