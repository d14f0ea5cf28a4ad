"""Tasks `humaneval` and `humaneval_infill`: OpenAI's functions with tests (arXiv 2107.03374), written or filled in, and run.

pass@1 is the share of problems whose tests the program passes with what the model wrote in it. To know it such programs are
run, which is dangerous, and done only where it is asked for.
"""

import functools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from a3jax.data.sources.files import UNREADABLE, File, find, open_bytes
from a3jax.decode.template import Range
from a3jax.devices.writing import by_first
from a3jax.errors import UserError, first_line
from a3jax.evaluate.blanks import LEFT, Blanked, Filling, fitting, parse_sizes
from a3jax.evaluate.infilling import FIM, LENGTHS, Way, Writer, ways
from a3jax.evaluate.options import Execute, Models, Options, Ready
from a3jax.evaluate.task import Item, Task
from a3jax.execute.case import PASSED
from a3jax.execute.sandbox import Sandbox
from a3jax.files.outside_json import parse_object
from a3jax.files.reading import check_text, located, raw_lines
from a3jax.outside_text import say

WRITTEN, INFILLED = "humaneval", "humaneval_infill"
FILES = {WRITTEN: "HumanEval.jsonl*", INFILLED: "HumanEval-*Infilling*.jsonl*"}
"""Task -> the files of a folder that hold its problems."""
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Behind these a function has ended, in HumanEval's own protocol."""
PASS = "pass@1"


class Problem(NamedTuple):
    """A program in which a part is missing, and what tells whether it works. It begins as a `Blanked` does."""

    before: str
    truth: str
    after: str
    test: str
    entry_point: str

    def program(self, text: str) -> str:
        """The whole of it with `text` for what is missing, and its tests, put together as HumanEval's own harness does."""
        return f"{self.before}{text}{self.after}\n{self.test}\ncheck({self.entry_point})"


Named = list[tuple[str, Problem]]
"""Problems by their ids, such as SingleLineInfilling/HumanEval/0/L0."""


class HumanEval:
    """pass@1, exact match and, where a blank has its length, nats per token of the truth."""

    def __init__(
        self,
        name: str,
        ways: Mapping[str, Way],
        source: str,
        problems: Named,
        sandbox: Sandbox | None,
        left_out: Counter[str],
        protocol: dict[str, Any],
        window: int = 1024,
        limit: int = 1000,
        seed: int = 0,
    ):
        """At most `limit` problems of each set, drawn by `seed`: the first ones would be about a few functions only."""
        self.name, self._ways, self._sandbox = name, ways, sandbox
        chosen = drawn(problems, limit, seed)
        named = [(id, Blanked(*problem[:3])) for id, problem in chosen]
        most = max((way.sizes.most for way in ways.values() if way.sizes), default=0)
        fit = fitting(named, [way.filler for way in ways.values()], window, left_out, most)
        contents = dict(chosen)
        self.items = [item._replace(content=contents[item.id], cluster=function_of(item.id)) for item in fit]
        self.protocol = {
            "seed": seed,
            "window": window,
            "problems": "of each set at most so many as --limit says, drawn by seed",
            **protocol,
            "decoding": {row: way.filler.decoding.recorded() for row, way in ways.items()},
            PASS: "share of problems whose tests the program passes; one program for a problem",
            "errors": "problems of one function count together",
            "execution": sandbox.facts if sandbox else "none",
            "exact": "share of texts that are the truth, white space at the end aside",
        }
        counts = Counter(set_of(item.id) for item in self.items)
        self.data = {"source": source, **counts, "of": len(problems), "left_out": dict(sorted(left_out.items()))}

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Fill every item in every way, and run what comes of it."""
        problems = [Problem(*item.content) for item in items]
        blanks = [Blanked(*problem[:3]) for problem in problems]
        found = {row: way.filler.fill(blanks, batch, way.sizes) for row, way in self._ways.items()}
        programs = {row: [one.program(filling.text) for one, filling in zip(problems, found[row])] for row in found}
        outcomes = self._outcomes([program for each in programs.values() for program in each])
        rows = []
        for i, (item, problem) in enumerate(zip(items, problems)):
            ran = {row: outcomes[programs[row][i]] for row in found} if outcomes else {}
            figures = {row: _figures(problem, found[row][i], ran.get(row)) for row in found}
            texts = {row: found[row][i].text for row in found}
            told = {"outcomes": ran} if ran else {}
            rows.append({"truth": problem.truth, "figures": {set_of(item.id): figures}, "texts": texts, **told})
        return rows

    def _outcomes(self, programs: Sequence[str]) -> dict[str, str]:
        run = functools.partial(self._sandbox.run, programs) if self._sandbox else None
        return dict(zip(programs, by_first(run))) if run else {}


def _figures(problem: Problem, filling: Filling, outcome: str | None) -> dict[str, tuple[float, float]]:
    figures: dict[str, tuple[float, float]] = {} if outcome is None else {PASS: (float(outcome == PASSED), 1)}
    figures["exact"] = (float(filling.text.rstrip() == problem.truth.rstrip()), 1)
    return figures | ({"nats per token": (filling.nats, filling.tokens)} if filling.tokens else {})


def set_of(id: str) -> str:
    """The set that a problem belongs to."""
    return id.partition("/")[0]


def function_of(id: str) -> str:
    """The function that a problem is about: HumanEval/0 for SingleLineInfilling/HumanEval/0/L0, and for itself."""
    parts = id.split("/")
    return "/".join(parts[parts.index("HumanEval") :][:2]) if "HumanEval" in parts else id


def drawn(problems: Named, limit: int, seed: int) -> Named:
    """At most `limit` problems of each set."""
    sets: dict[str, Named] = {}
    for one in problems:
        sets.setdefault(set_of(one[0]), []).append(one)
    return [one for name, all_ in sets.items() for one in random.Random(f"{seed} {name}").sample(all_, min(limit, len(all_)))]


def read_problems(data: Path, task: str, skip_bad: bool, left_out: Counter[str]) -> Named:
    """The problems in the file `data`, or in those of a folder that are the task's.

    Raises `UserError` for what cannot be read, and for a line that is no problem, unless such are to be counted.
    """
    found: dict[str, Problem] = {}
    for file in find(str(data), (FILES[task],), ()):
        try:
            _read_file(file, task, skip_bad, left_out, found)
        except UNREADABLE as error:
            raise UserError(f"{file.name} cannot be read: {first_line(error)}") from None
    if not found:
        raise UserError(f"{data} has no problem of {task}; name a file, or a folder with files such as {FILES[task]}")
    return list(found.items())


def _read_file(file: File, task: str, skip_bad: bool, left_out: Counter[str], found: dict[str, Problem]) -> None:
    with open_bytes(file) as source:
        for where, _, line in raw_lines(source, file.name):
            try:
                with located(where):
                    id, problem = _problem(parse_object(line, where), task)
                    if id in found:
                        raise UserError(f"{id} is there twice")
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error}; mend it, or pass over such with --skip-bad") from None
                left_out["broken line"] += 1
            else:
                found[id] = problem


def _problem(row: Mapping[str, Any], task: str) -> tuple[str, Problem]:
    fields = ["task_id", "prompt", "canonical_solution", *(["suffix"] if task == INFILLED else []), "test", "entry_point"]
    for field in fields:
        if not isinstance(row.get(field), str):
            raise UserError(f"has no text '{field}'; {task} needs {', '.join(fields)}")
        check_text(field, row[field])
    if task == WRITTEN and "suffix" in row:
        raise UserError(f"has a 'suffix', and so is a problem of {INFILLED}")
    after = row["suffix"] if task == INFILLED else ""
    return row["task_id"], Problem(row["prompt"], row["canonical_solution"], after, row["test"], row["entry_point"])


def sandbox_for(task: str, execute: Execute | None) -> Sandbox | None:
    """Where programs are run, if they are to be. Says what that means, or what is missing without it.

    Raises `UserError` where the machine does not let them be run so.
    """
    if execute is None:
        say(f"{task}: no {PASS}, for which programs that the model writes would be run, which is dangerous: see --execute")
        return None
    sandbox = Sandbox(execute == "confined")
    fence = "without network, and without files but Python's"
    if execute == "unconfined":
        fence = "WITH NO FENCE AROUND IT: it can read, delete and send away whatever this user can"
    say(f"{task}: PROGRAMS THAT THE MODEL WRITES ARE RUN ON THIS MACHINE, each in a process of its own, {fence}")
    return sandbox


def read(name: str, options: Options, left_out: Counter[str]) -> Ready:
    """The problems in `options.data`.

    Raises `UserError` for what cannot be read, and for programs that are to be run and cannot be so.
    """
    decoding, sizes = options.decoding.checked(), parse_sizes(options.sizes)
    if decoding.ends or decoding.stop:
        raise UserError(f"{name} says itself where a text ends; leave --ends and --stop out")
    if options.data is None:
        raise UserError(f"{name} needs --data: a file such as {FILES[name]}, or a folder with such files")
    problems = read_problems(options.data, name, options.skip_bad, left_out)
    sandbox = sandbox_for(name, options.execute)
    settings = tuple(dict.fromkeys(options.infilling))

    def ready(models: Models) -> Task:
        protocol: dict[str, Any] = {"new_tokens": options.new_tokens}
        if name == WRITTEN:
            writing = options.decoding.checked(ends=True, stop=STOPS)
            rows = {"model": models.model} | ({} if models.baseline is models.model else {"baseline": models.baseline})
            found = {row: Way(Writer(model, writing, LEFT), Range(1, options.new_tokens)) for row, model in rows.items()}
            protocol["prompt"] = "as it stands"
        else:
            found = ways(models, decoding, settings, sizes, options.new_tokens)
            protocol |= {"length": {one: LENGTHS[one] for one in settings}, "sizes": options.sizes}
            protocol["pieces"] = "what is before, in and behind the blank is tokenized apart"
            if "fim" in settings and not any(row.startswith(FIM) for row in found):
                say(f"{name}: no row for {FIM}, of which the tokenizer has none")
            if not found:
                raise UserError(f"--infilling names nothing to measure with this model; choose {', '.join(LENGTHS)}")
        return HumanEval(
            name, found, str(options.data), problems, sandbox, left_out, protocol,
            options.longest, options.limit, decoding.seed,
        )  # fmt: skip

    return ready
