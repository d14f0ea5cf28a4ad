"""Local copies of data sets: rows of a split's JSONL or Parquet files, as the hub has them, for either protocol.

FOLDER/TASK/                     or FOLDER/TASK/SUBSET/, if the data set has subsets; files lie in it or further below
    validation*.jsonl            one object a line
    validation*.parquet
FOLDER/lambada/                  its test split, or the file as which it is handed out, a text a line
    test*.jsonl
    test*.parquet
    lambada_test_plain_text.txt
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from a3jax.errors import UserError, first_line
from a3jax.evaluate.options import Models, Options, Ready
from a3jax.evaluate.task import Task
from a3jax.files.outside_json import decoded, parse_object
from a3jax.files.reading import check_text, opened, raw_lines

SPLIT = "validation"
FORMATS, PLAIN = (".jsonl", ".parquet"), ".txt"


class Row(NamedTuple):
    """One question."""

    where: str
    """The file and the place in it."""
    value: dict[str, Any]


class DataSet(NamedTuple):
    """What a task's rows look like."""

    fields: Mapping[str, Callable[[Any], Any]]
    """Those that are read, each with what checks its value."""
    subset: str | None = None
    """The one that the harness takes, if the data set has several."""
    split: str = SPLIT
    plain: str | None = None
    """A file with a text a line that may be there instead."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"is {value!r:.40}; it must be text")
    check_text("it", value)
    return value


def _words(value: Any) -> str:
    if not _text(value).strip():
        raise UserError("is empty")
    return value


def _last_word(value: Any) -> str:
    if len(_text(value).split()) < 2:
        raise UserError("has no word before its last one")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(f"is {value!r:.40}; it must be a list of texts")
    return [_words(one) for one in value]


def _sentence(value: Any) -> str:
    if "_" not in _text(value):
        raise UserError("has no _, which stands where the options go")
    return value


def _aliases(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "aliases" not in value:
        raise UserError("has no 'aliases'")
    return {"aliases": _texts(value["aliases"])}


def _one_of(*known: int | str) -> Callable[[Any], int | str]:
    """A label, told as the harness expects it, whether the file has a number or its digits."""

    def label(value: Any) -> int | str:
        for one in known:
            if str(one) == str(value):
                return one
        raise UserError(f"is {value!r:.40}; it must be one of {', '.join(map(str, known))}")

    return label


DATA_SETS = {
    "hellaswag": DataSet(
        {
            "activity_label": _text, "ctx_a": _text, "ctx_b": _text, "endings": _texts,
            "label": _one_of("0", "1", "2", "3"),
        }
    ),
    "winogrande": DataSet(
        {"sentence": _sentence, "option1": _words, "option2": _words, "answer": _one_of("1", "2")}, "winogrande_xl"
    ),
    "social_iqa": DataSet(
        {
            "context": _text, "question": _text, "answerA": _words, "answerB": _words, "answerC": _words,
            "label": _one_of("1", "2", "3"),
        }
    ),
    "piqa": DataSet({"goal": _text, "sol1": _words, "sol2": _words, "label": _one_of(0, 1)}),
    "triviaqa": DataSet({"question": _text, "answer": _aliases}, "rc.nocontext"),
    "lambada": DataSet({"text": _last_word}, split="test", plain="lambada_test_plain_text.txt"),
}  # fmt: skip
"""By the name of the task, in the harness too where it is one of its own."""


def read_rows(folder: Path, name: str, skip_bad: bool, left_out: Counter[str]) -> list[Row]:
    """All questions of a task, with the fields that it needs.

    Raises `UserError` where there is no such split, and for a broken line, unless such are to be counted in `left_out`.
    """
    found = []
    for file in _files(folder, name):
        for where, read in _parquet(file, name) if file.suffix == ".parquet" else _lines(file):
            try:
                found.append(Row(where, _checked(read(), name)))
            except UserError as error:
                message = str(error) if str(error).startswith(where) else f"{where}: {error}"
                if not skip_bad:
                    raise UserError(f"{message}; mend it, or pass over such with --skip-bad") from None
                left_out["broken line"] += 1
    if not found:
        raise UserError(f"{folder / name} has no question in its {DATA_SETS[name].split} split")
    return found


def _files(folder: Path, name: str) -> list[Path]:
    root = folder / name
    if not root.is_dir():
        raise UserError(f"{folder} has no folder '{name}'; put the files of the data set there, or name another with --data")
    _, subset, split, plain = DATA_SETS[name]
    if subset is not None and (root / subset).is_dir():
        root = root / subset
    files = sorted(file for file in root.rglob(f"{split}*") if file.suffix in FORMATS and file.is_file())
    files += sorted(root.rglob(plain)) if plain else []
    if not files:
        or_plain = f" or {plain}" if plain else ""
        raise UserError(f"{root} has no {split} split; its files are called {split}*.jsonl or {split}*.parquet{or_plain}")
    kinds = list(dict.fromkeys((file.parent, file.suffix) for file in files))
    if len(kinds) > 1:
        names = {suffix: f"{split}*{suffix}" for suffix in FORMATS} | {PLAIN: plain or ""}
        one, other = (parent / names[suffix] for parent, suffix in kinds[:2])
        raise UserError(f"{root} has the {split} split twice, as {one} and as {other}; leave one of them")
    return files


def _lines(file: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Lines that are parsed when they are asked for, so that one that is broken does not end the file."""
    parse = _plain if file.suffix == PLAIN else parse_object
    with opened(str(file)) as (source, name):
        for where, _, line in raw_lines(source, name):
            yield where, lambda line=line, where=where: parse(line, where)  # type: ignore[misc]


def _plain(line: bytes, where: str) -> dict[str, Any]:
    return {"text": decoded(line, where)}


def _parquet(file: Path, name: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    try:
        with pq.ParquetFile(file) as source:
            names = source.schema_arrow.names
            table = source.read([field for field in DATA_SETS[name].fields if field in names])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{file}, row {number}", lambda row=row: row  # type: ignore[misc]


def _checked(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields that the task needs."""
    found = {}
    for field, check in DATA_SETS[name].fields.items():
        if field not in row:
            raise UserError(f"has no '{field}'; {name} needs {', '.join(DATA_SETS[name].fields)}")
        try:
            found[field] = check(row[field])
        except UserError as error:
            raise UserError(f"'{field}' {error}") from None
    return found


def read(name: str, options: Options, left_out: Counter[str]) -> Ready:
    """The rows in the folder `options.data / name`. Raises `UserError` if they cannot be read, and without the harness."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError(f"{name} is asked by lm-evaluation-harness; pip install 'a3jax[harness]'") from None
    decoding = options.decoding.checked()
    if options.data is None:
        raise UserError(f"{name} needs --data, a folder whose folder '{name}' has the files of the data set")
    if not decoding.is_plain:
        raise UserError(f"{name} is answered in a fixed order; leave --mode {decoding.mode} out, or name an --order")
    source, rows = str(options.data / name), read_rows(options.data, name, options.skip_bad, left_out)

    def ready(models: Models) -> Task:
        from a3jax.evaluate.harness import A3
        from a3jax.evaluate.questions import Questions

        model = A3(models.model, decoding.order, decoding.seed, options.batch)
        return Questions(name, model, source, rows, left_out, options.skip_bad, options.limit, options.apply_chat_template)

    return ready
