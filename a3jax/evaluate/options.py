"""What a user may say of tasks, and what a task is given."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tyro.conf import OmitArgPrefixes

from a3jax.decode.settings import DEFAULTS, DecodingOptions

if TYPE_CHECKING:
    from a3jax.evaluate.task import Task
    from a3jax.weights.loading import Model

ProtocolName = Literal["harness", "diffullama"]
DEFAULT_PROTOCOL: ProtocolName = "harness"


Infilling = Literal["length", "space", "chosen", "fim"]
Execute = Literal["confined", "unconfined"]


@dataclass(frozen=True)
class Options:
    """The options of all tasks; each says in its help which tasks heed it."""

    protocol: ProtocolName = DEFAULT_PROTOCOL
    """Who asks how: data sets as lm-evaluation-harness does it and all else as we do, or as DiffuLLaMA's scripts do it, which
    is how arXiv 2601.13228 is evaluated (docs/evaluate.md)."""
    limit: int = 1000
    """Most stories, windows of text, blanks of each kind in code, prompts, and questions of each data set."""
    longest: int = 1024
    """Tokens: longer texts are cut into windows for likelihood, and longer stories and code are left out and counted."""
    batch: int = 8
    """Items evaluated at once; what comes out does not depend on it."""
    text: str | None = None
    """likelihood, continuation: a file or folder of texts, or what else a3jax prepare takes; the source of Python's standard
    library if not given."""
    column: str = "text"
    """likelihood, continuation, code: field or column that holds the text."""
    split: str = "train"
    """likelihood, continuation, code: of data sets that have splits."""
    include: tuple[str, ...] = ("*",)
    """likelihood, continuation: shell patterns of files to read inside a folder."""
    orders: tuple[str, ...] = ()
    """likelihood: ar, in_order_N, random_N, spans_N, infill_N, right_to_left_N, or bound of masked diffusion; a choice of all
    that the model has if not given."""
    stories: str | None = None
    """stories: the CSV file of Story Cloze, or five sentences a line; synthetic stories from templates if not given."""
    sizes: str = "4-20"
    """stories, humaneval_infill: numbers of tokens to choose from where the length is not told."""
    settings: tuple[Literal["one", "three", "chosen"], ...] = ("one", "three", "chosen")
    """stories: sentence 3 is blanked, sentences 2 to 4, and sentence 3 with its length chosen by the model."""
    code: str | None = None
    """code: a file or folder of Python; the source of Python's standard library if not given."""
    data: Path | None = None
    """hellaswag, winogrande, social_iqa, piqa, triviaqa, lambada: a folder with a folder of this name for each, where the
    files of its validation split lie, of lambada's test split. humaneval, humaneval_infill: the file of a set, or a folder
    with files of such names."""
    apply_chat_template: bool = False
    """hellaswag, winogrande, social_iqa, piqa, triviaqa: ask each question as a user's message in a chat, as the template of
    the model has it."""
    infilling: tuple[Infilling, ...] = ("length", "space", "chosen", "fim")
    """humaneval_infill: the blank has the length of the truth; the white space at its ends is given too; its length is
    chosen by the model; FIM tokens stand around it, where the tokenizer has them."""
    execute: Execute | None = None
    """DANGEROUS. humaneval, humaneval_infill: run the programs that the model writes, for pass@1: without network, other
    processes and files but Python's (confined), or with all that this user may do (unconfined)."""
    judge: Path | None = None
    """continuation: the autoregressive model that says how likely the texts are; a Hugging Face folder, or any CHECKPOINT."""
    prompt_tokens: int = 64
    """continuation: tokens of each text that are given."""
    new_tokens: int = 128
    """continuation: tokens that are written behind them. humaneval, and humaneval_infill with FIM tokens: at most."""
    baseline: Path | None = None
    """stories, code: the model that sees the left only; CHECKPOINT itself if not given. humaneval, humaneval_infill: one
    more model to compare with."""
    skip_bad: bool = False
    """Pass over and count broken lines and files instead of ending at the first."""
    decoding: OmitArgPrefixes[DecodingOptions] = DEFAULTS


class Models(NamedTuple):
    """The models of an evaluation."""

    model: "Model"
    baseline: "Model"
    """What sees the left only; the model itself unless another is named."""
    judge: "Model | None"

    def by_role(self) -> "dict[str, Model]":
        """Those that there are."""
        return {role: model for role, model in self._asdict().items() if model is not None}


Ready = Callable[[Models], "Task"]
"""A task whose data are read. What is wrong with them is told before a model is loaded."""
Read = Callable[[str, Options, "Counter[str]"], Ready]
"""The name of a task, the options, and a count of what is left out, by reason -> the task, its data read."""
