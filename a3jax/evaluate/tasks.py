"""The tasks by protocol and name. A new one is a file whose `read` is named here, and any options of its own in `Options`."""

import importlib
from collections import Counter
from typing import TYPE_CHECKING

from a3jax.errors import UserError
from a3jax.evaluate.options import DEFAULT_PROTOCOL, Models, Options, ProtocolName, Read, Ready

if TYPE_CHECKING:
    from a3jax.evaluate.task import Task

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
"""Of the default protocol: name -> the module whose `read` reads its data. Modules are imported when they are used."""

PROTOCOLS: dict[ProtocolName, dict[str, str]] = {
    DEFAULT_PROTOCOL: TASKS,
    "diffullama": {
        "hellaswag": "a3jax.evaluate.diffullama",
        "winogrande": "a3jax.evaluate.diffullama",
        "social_iqa": "a3jax.evaluate.diffullama",
        "piqa": "a3jax.evaluate.diffullama",
        "triviaqa": "a3jax.evaluate.diffullama",
        "lambada": "a3jax.evaluate.diffullama",
        "stories": "a3jax.evaluate.diffullama",
        "continuation": "a3jax.evaluate.judged",
    },
}
"""Who asks how: protocol -> its tasks, as in `TASKS`."""
NAMES = tuple(dict.fromkeys(name for tasks in PROTOCOLS.values() for name in tasks))
"""Of all tasks."""


def read_task(name: str, options: Options) -> Ready:
    """Read what the task `name` is about. Raises `UserError` for data or options that cannot be."""
    tasks = PROTOCOLS[options.protocol]
    if name not in tasks:
        raise UserError(f"protocol {options.protocol} has no task {name}; it has {', '.join(tasks)}")
    read: Read = importlib.import_module(tasks[name]).read
    ready = read(name, options, Counter())
    if options.protocol == DEFAULT_PROTOCOL:
        return ready

    def named(models: Models) -> "Task":
        task = ready(models)
        task.protocol = {"name": options.protocol, **task.protocol}
        return task

    return named
