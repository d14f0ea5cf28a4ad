"""a3jax evaluate."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import OmitArgPrefixes, Positional, arg

from a3jax.commands.commandline import Json, Text
from a3jax.config import MeshConfig
from a3jax.errors import UserError
from a3jax.generate.choices import DEFAULTS, Choices
from a3jax.outside_text import show

if TYPE_CHECKING:
    from a3jax.evaluate.task import Task
    from a3jax.weights.loading import Model

Name = Literal["likelihood", "stories", "code", "continuation", "hellaswag", "winogrande", "social_iqa", "piqa", "triviaqa"]
ONE_DEVICE = MeshConfig(fsdp=1)


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: how well it predicts text in any order, what it fills into stories and code, how it continues texts,
    and how it answers the questions of data sets.

    a3jax evaluate runs/demo --tasks likelihood stories code --limit 100 --out results/demo

    a3jax evaluate runs/demo --tasks stories --stories cloze_test_val.csv --baseline models/smollm2 --out results/stories

    a3jax evaluate runs/demo --tasks hellaswag piqa triviaqa --data datasets --limit 20000 --out results/questions

    a3jax evaluate runs/demo --tasks continuation --text held_out.jsonl --judge models/llama --temperature 1

    The same command goes on where it was stopped, and gives the same numbers again.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    tasks: tuple[Name, ...]
    """What to measure."""
    out: Path | None = None
    """Folder for the results: of every item as they come, and of all."""
    limit: int = 1000
    """Most stories, windows of text, blanks of each kind in code, prompts, and questions of each data set."""
    longest: int = 1024
    """Tokens: longer texts are cut into windows for likelihood, and longer stories and code are left out and counted."""
    batch: int = 8
    """Items evaluated at once; what comes out does not depend on it."""
    text: Text = None
    """likelihood, continuation: a file or folder of texts, or what else a3jax prepare takes; the source of Python's standard
    library if not given."""
    column: str = "text"
    """likelihood, continuation, code: field or column that holds the text."""
    split: str = "train"
    """likelihood, continuation, code: of data sets that have splits."""
    include: tuple[str, ...] = ("*",)
    """likelihood, continuation: shell patterns of files to read inside a folder."""
    orders: tuple[str, ...] = ()
    """likelihood: ar, in_order_N, random_N, spans_N, infill_N, right_to_left_N; a choice of all of them if not given."""
    stories: Text = None
    """stories: the CSV file of Story Cloze, or five sentences a line; synthetic stories from templates if not given."""
    sizes: str = "4-20"
    """stories: numbers of tokens to choose from where the length is not told."""
    settings: tuple[Literal["one", "three", "chosen"], ...] = ("one", "three", "chosen")
    """stories: sentence 3 is blanked, sentences 2 to 4, and sentence 3 with its length chosen by the model."""
    code: Text = None
    """code: a file or folder of Python; the source of Python's standard library if not given."""
    data: Path | None = None
    """hellaswag, winogrande, social_iqa, piqa, triviaqa: a folder with a folder of this name for each, where the files of its
    validation split lie."""
    judge: Path | None = None
    """continuation: the autoregressive model that says how likely the texts are; a Hugging Face folder, or any CHECKPOINT."""
    prompt_tokens: int = 64
    """continuation: tokens of each text that are given."""
    new_tokens: int = 128
    """continuation: tokens that are written behind them."""
    baseline: Path | None = None
    """stories, code: the model that sees the left only; CHECKPOINT itself if not given."""
    skip_bad: bool = False
    """Pass over and count broken lines and files instead of ending at the first."""
    decoding: OmitArgPrefixes[Choices] = DEFAULTS
    step: int | None = None
    """Checkpoint of a run folder; the newest if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""
    mesh: MeshConfig = ONE_DEVICE
    """Several devices, as for a3jax train: weights are split, and batches over data and fsdp."""
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--tasks names what to measure, each once: {', '.join(get_args(Name))}")
        for name, least in {"limit": 1, "longest": 2, "batch": 1, "prompt_tokens": 1, "new_tokens": 1}.items():
            if not least <= getattr(self, name) <= 2**20:
                option, value = name.replace("_", "-"), getattr(self, name)
                raise UserError(f"--{option} is {value}; it must be at least {least} and at most {2**20}")
        self.decoding.checked()
        if self.mesh.context != 1 and self.tasks != ("likelihood",):
            raise UserError("--mesh.context splits windows of text, which only likelihood has; take data, fsdp or tensor")

        import jax

        from a3jax.devices.mesh import make_mesh
        from a3jax.evaluate.evaluation import evaluate
        from a3jax.evaluate.results import print_tables
        from a3jax.weights.loading import load

        ready = [self._read(name) for name in self.tasks]  # what is wrong with the data is told before a model is loaded
        mesh = None if self.mesh == ONE_DEVICE else make_mesh(self.mesh)
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            model = load(self.checkpoint, self.dtype, self.step, mesh)
            baseline = model if self.baseline is None else load(self.baseline, self.dtype, mesh=mesh)
            models = {"model": model, "baseline": baseline}
            if self.judge is not None:
                models["judge"] = load(self.judge, self.dtype, mesh=mesh)
            tasks = [make(models) for make in ready]
            results, tables = evaluate(tasks, models, self.out, self.batch)
        results = {"checkpoint": str(self.checkpoint), "baseline": str(self.baseline or self.checkpoint), **results}
        if self.json:
            return results
        for task in tasks:
            counts = [f"{name.replace('_', ' ')} {count}" for name, count in task.data.items() if name != "left_out"]
            left_out = [f"{reason} {count}" for reason, count in task.data["left_out"].items()]
            show(f"{', '.join(counts)}{'; left out: ' if left_out else ''}{', '.join(left_out)}\n")
            print_tables(tables[task.name])
        return {} if self.out is None else {"out": str(self.out)}

    def _read(self, name: Name) -> "Callable[[dict[str, Model]], Task]":
        """Read what a task is about, for a model with its baseline and its judge.

        A new task is a file in `a3jax.evaluate`, its options above, and a case here.
        """
        from a3jax.evaluate.blanks import fillers
        from a3jax.evaluate.texts import read_texts

        left_out: Counter[str] = Counter()
        seed = self.decoding.seed
        if name == "likelihood":
            from a3jax.curriculum.stage import parse_order
            from a3jax.evaluate.by_order import ORDERS, ByOrder

            orders = self.orders or ORDERS
            for order in orders:
                parse_order(order)
            source, texts = read_texts(self.text, self.column, self.split, self.include, seed, self.skip_bad, left_out)
            return lambda models: ByOrder(models["model"], source, texts, left_out, orders, self.longest, self.limit, seed)

        decoding = self.decoding.checked()
        if name == "continuation":
            from a3jax.evaluate.judged import Judged

            if self.judge is None:
                raise UserError("continuation needs --judge, the model that says how likely the texts are")
            source, texts = read_texts(self.text, self.column, self.split, self.include, seed, self.skip_bad, left_out)
            lengths = self.prompt_tokens, self.new_tokens, self.limit
            return lambda models: Judged(models["model"], models["judge"], decoding, source, texts, left_out, *lengths)

        if name not in ("code", "stories"):
            return self._questions(name, left_out)

        if name == "code":
            from a3jax.evaluate.code import Code

            patterns = ("*.py", "*.jsonl*", "*.parquet")
            source, texts = read_texts(self.code, self.column, self.split, patterns, seed, self.skip_bad, left_out)
            return lambda models: Code(
                fillers(models["model"], models["baseline"], decoding),
                source,
                texts,
                left_out,
                self.skip_bad,
                self.longest,
                self.limit,
                seed,
            )

        from a3jax.decode.template import Range
        from a3jax.evaluate.rouge import scorer
        from a3jax.evaluate.stories import CHOSEN, ONE, THREE, Stories, read_stories
        from a3jax.evaluate.synthetic_stories import SYNTHETIC, synthetic_stories

        scorer()
        least, _, most = self.sizes.partition("-")
        if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) < int(most) <= 4096):
            raise UserError(f"--sizes is '{self.sizes}'; write the smallest and the largest number of tokens, such as 4-20")
        sizes = Range(int(least), int(most))
        settings = [{"one": ONE, "three": THREE, "chosen": CHOSEN}[setting] for setting in dict.fromkeys(self.settings)]
        if self.stories is None:
            source, stories = SYNTHETIC, synthetic_stories(self.limit, seed)
        else:
            source, stories = self.stories, read_stories(self.stories, self.skip_bad, left_out)
        return lambda models: Stories(
            fillers(models["model"], models["baseline"], decoding),
            source,
            stories,
            left_out,
            settings,
            sizes,
            self.longest,
            self.limit,
        )

    def _questions(self, name: Name, left_out: Counter[str]) -> "Callable[[dict[str, Model]], Task]":
        """A task of lm-evaluation-harness."""
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            raise UserError(f"{name} is asked by lm-evaluation-harness; pip install 'a3jax[harness]'") from None
        from a3jax.evaluate.harness import A3
        from a3jax.evaluate.local_data import read_rows
        from a3jax.evaluate.questions import Questions

        if self.data is None:
            raise UserError(f"{name} needs --data, a folder whose folder '{name}' has the files of the data set")
        if self.decoding.mode not in ("groups", "ar"):
            raise UserError(f"{name} is answered in a fixed order; leave --mode {self.decoding.mode} out, or name an --order")
        source, rows = str(self.data / name), read_rows(self.data, name, self.skip_bad, left_out)
        order, seed = self.decoding.order, self.decoding.seed
        return lambda models: Questions(
            name, A3(models["model"], order, seed, self.batch), source, rows, left_out, self.skip_bad, self.limit
        )
