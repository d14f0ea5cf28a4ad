"""a3jax generate."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from a3jax.commands.commandline import PLAIN, Json, Loads, Text, check_shared
from a3jax.decode.settings import DEFAULTS, DecodingOptions
from a3jax.devices.joined import joined
from a3jax.devices.processes import is_alone
from a3jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from a3jax.generate.request import Wanted


@dataclass(frozen=True)
class Generate:
    """Fill the blanks of a text in any order, continue one, answer in a chat, fill a gap, or answer a file of such requests.

    a3jax generate demo/run --text "def area(r): [[8]] * r"

    a3jax generate demo/run --prompt "def area(r):" --tokens 40 --stop "def "

    a3jax generate runs/mine --chat "What is a closure?" --tokens 200

    a3jax generate demo/run --file requests.jsonl --out answers.jsonl

    Without an input, the text to fill is read from standard input.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    text: Text = None
    """A text in which [[8]] is a blank of eight tokens, [[4-12]] one of four to twelve, and [[..32]] one of as many as it
    wants, with room for 32."""
    rewrite: Text = None
    """With --text: the part of it to fill anew. It must stand there once; the text has no blanks then."""
    prompt: Text = None
    """A text to continue, to the model's end token, a stop string, or --tokens."""
    chat: Text = None
    """What a user says, to be answered as the model's chat template has it, with up to --tokens tokens."""
    before: Path | None = None
    """A file with the text before what is to be filled in."""
    after: Path | None = None
    """A file with the text after it."""
    tokens: Text = None
    """How many tokens to fill in: N, MIN-MAX, or ..N for as many as it wants. At most N after --prompt and --chat;
    if not given, it is 256 for --chat and ..32 between --before and --after, and --rewrite keeps the number."""
    file: Text = None
    """A JSONL file of requests, - for standard input."""
    out: Path | None = None
    """Where the answers to --file go, one a line; standard output if not given. The same command goes on where it stopped."""
    n: int = 1
    """Samples of each text, with seed, seed + 1 and so on."""
    batch: int = 8
    """Texts filled at once."""
    decoding: OmitArgPrefixes[DecodingOptions] = DEFAULTS
    watch: bool = False
    """Show the text in the terminal while it fills in, coloured by probability."""
    trace: Path | None = None
    """Write an HTML page on which one can move through the passes."""
    loading: Loads = PLAIN
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        self._check()
        with joined(self.loading.devices) as mesh:
            self._check_shared()
            return self._one(mesh) if self.file is None else self._many(self.file, mesh)

    def _check(self) -> None:
        """What can be said before anything is read."""
        from a3jax.progress import console

        inputs = ("text", "rewrite", "prompt", "chat", "before", "after", "tokens")
        given = [name for name in (*inputs, "watch", "trace") if getattr(self, name) not in (None, False)]
        if self.file is not None and given:
            raise UserError(f"--{given[0]} does not go with --file, whose lines say what is wanted; leave one of them out")
        if self.file is None and self.out is not None:
            raise UserError("--out is for the answers to --file; redirect standard output instead")
        for name in ("n", "batch"):
            if not 1 <= getattr(self, name) <= 2**20:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1 and at most {2**20}")
        if self.watch and not console.is_terminal:
            raise UserError("--watch shows the text in a terminal, and standard error is none; use --trace FILE.html instead")

    def _check_shared(self) -> None:
        """What can be said when it is known whether there are several processes."""
        check_shared(self.file)
        if self.watch and not is_alone():
            raise UserError("--watch shows the text of one process, and there are several; use --trace FILE.html instead")

    def _wanted(self) -> "Wanted":
        """The request as it is given by options, or on standard input where none is."""
        from a3jax.devices.writing import by_first
        from a3jax.files.reading import STDIN, has_input, whole_text
        from a3jax.generate.request import Wanted

        before, after = (None if path is None else whole_text(path) for path in (self.before, self.after))
        text = self.text
        if {text, self.prompt, self.chat, before, after} == {None}:
            text = by_first(lambda: whole_text(STDIN) or None if has_input() else None)
        messages = None if self.chat is None else ({"role": "user", "content": self.chat},)
        wanted = Wanted(text, self.rewrite, self.prompt, before, after, self.tokens, messages)
        wanted.check()
        return wanted

    def _one(self, mesh: "Mesh | None") -> dict[str, Any]:
        """Fill one text, n times."""
        wanted = self._wanted()
        decodings = [wanted.decoding(self.decoding, seed=self.decoding.seed + i) for i in range(self.n)]

        from a3jax.devices.writing import by_first
        from a3jax.generate.request import answer, fill, request
        from a3jax.progress import Progress, console
        from a3jax.show.trace import trace
        from a3jax.show.watch import Watch

        if self.trace is not None:
            by_first(functools.partial(_check_page, self.trace))
        model = self.loading.model(self.checkpoint, mesh)
        first = request(model, wanted, decodings[0])
        requests = [dataclasses.replace(first, decoding=each) for each in decodings]
        size = min(self.batch, self.n)
        if self.watch:
            with Watch(model.codec, console) as watch:
                filled = fill(model, requests, size, watch)
        else:
            with Progress("generate", self.n, "texts") if self.n > size else nullcontext() as bar:
                filled = fill(model, requests, size, done=bar.advance if bar else lambda _: None)
        if not self.json:
            for one, each in zip(filled, decodings):
                if self.n > 1:
                    print(f"seed {each.seed}, log prob {one.log_prob:.4g}:")
                if self.chat is None:
                    _print_marked(one.pieces)
                else:
                    _print(one.blanks[0].text)
        if self.trace is not None:
            by_first(functools.partial(_write, self.trace, trace(model.codec, list(zip(filled, decodings)))))
        seconds = sum(one.seconds for one in filled[:: self.batch])
        if self.json:
            answers = [{"seed": each.seed, **answer(one)} for one, each in zip(filled, decodings)]
            return {**(answers[0] if self.n == 1 else {"samples": answers}), "seconds": seconds}
        facts = {"forwards": filled[0].forwards, "log_prob": filled[0].log_prob} if self.n == 1 else {}
        return {**facts, "seconds": seconds, "trace": self.trace}

    def _many(self, file: str, mesh: "Mesh | None") -> dict[str, Any]:
        """Answer a file of requests."""
        from a3jax.files.reading import STDIN, opened
        from a3jax.generate.bulk import answer_file

        if self.out is not None and file != STDIN and self.out.exists() and self.out.samefile(file):
            raise UserError(f"{file} is both --file and --out; choose another file for the answers")
        with opened(file) as (source, name):
            out = sys.stdout.buffer if self.out is None else self.out
            model = self.loading.model(self.checkpoint, mesh)
            counts = answer_file(model, source, name, out, self.decoding, self.n, self.batch)
        return {} if self.out is None else {"out": str(self.out), **counts}


def _check_page(path: Path) -> None:
    """Raises `UserError` for a place where no page can be written, and for a file that is no page and would be lost."""
    from a3jax.files.places import is_local
    from a3jax.show.trace import is_trace

    if is_local(path) and not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; --trace writes a file")
    if path.exists() and not (path.is_file() and is_trace(path)):
        raise UserError(f"{path} is there and is no page of --trace; choose another file")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from None


def _print(text: str) -> None:
    """A text as it is, but on a terminal without what that would obey."""
    from a3jax.outside_text import printable

    print(printable(text) if sys.stdout.isatty() else text)


def _print_marked(pieces: Sequence[tuple[str, bool]]) -> None:
    """A text with what was filled in standing out: in colour on a terminal, between ⟦ and ⟧ elsewhere."""
    from rich.text import Text

    from a3jax.outside_text import printable
    from a3jax.terminal import Terminal

    if sys.stdout.isatty():
        marked = Text.assemble(*((printable(text), "bold green" if filled else "") for text, filled in pieces))
        Terminal(soft_wrap=True).print(marked)
    else:
        print("".join(f"⟦{text}⟧" if filled else text for text, filled in pieces))
