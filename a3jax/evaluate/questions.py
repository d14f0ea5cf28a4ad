"""Tasks of lm-evaluation-harness on local data: multiple choice, and short answers.

The harness says how a question is asked and how an answer is judged, by its own description of the task; its requests go
through the same `a3` model that it would call itself.
"""

import importlib.metadata
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task as HarnessTask
from lm_eval.tasks import TaskManager

from a3jax.errors import UserError
from a3jax.evaluate.harness import A3
from a3jax.evaluate.local_data import SPLIT, Row
from a3jax.evaluate.task import Item
from a3jax.files.reading import located

FOLDERS = {"hellaswag": "hellaswag", "winogrande": "winogrande", "social_iqa": "siqa", "piqa": "piqa", "triviaqa": "triviaqa"}
"""The harness's folder for each task; to look through all of them takes long."""


class Questions:
    """The harness's own metrics of one of its tasks."""

    def __init__(
        self,
        name: str,
        model: A3,
        source: str,
        rows: Sequence[Row],
        left_out: Counter[str],
        skip_bad: bool = False,
        limit: int = 1000,
        chat: bool = False,
    ):
        """The first `limit` rows; asked as a user's message in a chat, if they are to be.

        Raises `UserError` for one that is longer than the model's context, unless such are to be counted in `left_out`.
        """
        self.name, self._model = name, model
        self.items: list[Item] = []
        self._task = harness_task(name, [row.value for row in rows[:limit]])
        self._requests: dict[str, list[Instance]] = {}
        for number, requests in enumerate(_requests(self._task, model if chat else None)):
            where = rows[number].where
            try:
                with located(where):
                    length = max(model.length(request) for request in requests)
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error}; pass over such with --skip-bad") from None
                left_out["longer than the context"] += 1
                continue
            item = Item(f"{name}:{number}", length, [request.args for request in requests])
            self.items.append(item)
            self._requests[item.id] = requests
        self.protocol = {
            "lm_eval": importlib.metadata.version("lm_eval"),
            "task_version": self._task.VERSION,
            "shots": 0,
            "order": model.order,
            "seed": model.seed,
            "begins_with_start_token": model.begins,
            "chat_template": chat and model.chat_template(),
            "tokens": "as lm_eval does it for Hugging Face models: spaces that end a context go to the continuation",
            "items": "the first, in the order of the files",
        }
        self.data = {
            "source": source, "split": SPLIT, "questions": len(self.items), "of": len(rows),
            "left_out": dict(sorted(left_out.items())),
        }  # fmt: skip

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Answer every question, as the model's order has it."""
        requests = [request for item in items for request in self._requests[item.id]]
        for request, answer in zip(requests, getattr(self._model, requests[0].request_type)(requests)):
            request.resps = [answer]
        self._task._instances = requests
        self._task.apply_filters()
        rows = []
        for item in items:
            own = self._requests[item.id]
            (filtered,) = {name for request in own for name in request.filtered_resps}
            metrics = self._task.process_results(own[0].doc, [request.filtered_resps[filtered] for request in own])
            figures = {metric: (float(value), 1) for metric, value in metrics.items()}
            answers = [request.resps[0] for request in own]
            rows.append({"answers": answers, "figures": {self.name: {self._model.order: figures}}})
        return rows


def harness_task(name: str, rows: Sequence[dict[str, Any]]) -> HarnessTask:
    """The harness's task of this name, about these rows instead of those of the hub."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is as it should be
    datasets.disable_progress_bars()
    data = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(list(rows))})
    folder = Path(lm_eval.__file__).parent / "tasks" / FOLDERS[name]
    manager = TaskManager(include_path=folder, include_defaults=False)
    local = {"task": name, "custom_dataset": lambda **_: data, "training_split": None, "test_split": None}
    group = {"group": "local", "task": [local]}  # what is not in a group would not be looked up by its name
    return manager.load(group)["tasks"][name]


def _requests(task: HarnessTask, chat: A3 | None) -> list[list[Instance]]:
    """The requests of each question, in a chat as a model has it where one is given."""
    found = []
    how = {} if chat is None else {"apply_chat_template": True, "chat_template": chat.apply_chat_template}
    for number, doc in task.doc_iterator():
        context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc), **how)
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, number, 1), **how)
        found.append(made if isinstance(made, list) else [made])
    return found
