"""Task `stories`: sentences of five-sentence stories are blanked, and filled in by a model that sees how the story ends.

The protocol is that of DiffuLLaMA's ROCStories infilling (arXiv 2410.17891): the third sentence between the first two and
the last two, as many tokens as it has, ROUGE over the first thousand stories of the Story Cloze validation set. Besides
it, three sentences are blanked at once, and the third one without telling how long it is.
"""

import csv
import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from a3jax.decode.template import Range
from a3jax.errors import UserError
from a3jax.evaluate.blanks import LEFT, Blanked, Filler, Filling, fillers, fitting, parse_sizes
from a3jax.evaluate.options import Options, Ready
from a3jax.evaluate.rouge import rouge, scorer
from a3jax.evaluate.task import Item
from a3jax.files.outside_json import parse_object
from a3jax.files.reading import check_text, located, opened, raw_lines, whole_text

SENTENCES = 5
CLOZE = (*(f"InputSentence{i}" for i in range(1, SENTENCES)), "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")
RIGHT = "AnswerRightEnding"
PLAIN = tuple(f"sentence{i}" for i in range(1, SENTENCES + 1))
ONE, THREE, CHOSEN = "sentence 3", "sentences 2 to 4", "sentence 3, length chosen"
BLANKED = {ONE: (2, 3), THREE: (1, 4), CHOSEN: (2, 3)}
"""Setting -> the sentences that are blanked, from the first up to the second, counted from 0."""


class Story(NamedTuple):
    """Five sentences."""

    id: str
    sentences: tuple[str, ...]
    fact: str | None = None
    """A word of the third sentence that only the fifth one tells, where one is known."""


class Stories:
    """ROUGE, exact match and nats per token of the truth, with both sides seen and from the left only."""

    name = "stories"

    def __init__(
        self,
        fillers: Sequence[Filler],
        source: str,
        stories: Sequence[Story],
        left_out: Counter[str],
        settings: Sequence[str] = tuple(BLANKED),
        sizes: Range = Range(4, 20),  # noqa: B008, it never changes
        window: int = 1024,
        limit: int = 1000,
    ):
        """The first `limit` stories. `sizes` are those to choose from where the length is not told."""
        self._fillers, self._sizes = fillers, sizes
        self.items: list[Item] = []
        for setting in settings:
            named = [(f"{setting}: {story.id}", blanked(story, *BLANKED[setting])) for story in stories[:limit]]
            self.items += fitting(named, fillers, window, left_out, sizes.most if setting == CHOSEN else 0)
        chosen = "of the sizes the one of largest log-likelihood per token"
        if any(filler.ends_blanks for filler in fillers):
            chosen = "up to the end of the blank, at most the largest size"
        self.protocol = {
            "settings": list(settings),
            "sizes": f"{sizes.least}-{sizes.most}",
            "window": window,
            "stories": "the first, in the order of the file",
            "pieces": "what is before, in and behind the blank is tokenized apart; each begins with the space before it",
            "length": f"as many tokens as the truth; where chosen, {chosen}",
            "decoding": {filler.sees: filler.decoding.recorded() for filler in fillers},
            "left_only": "the baseline decodes as many tokens from what is before; where the length is chosen, as many as "
            "the largest size, cut behind the first sentence",
            "rouge": "rouge-score, F1 times 100, no stemming",
            "exact": "share of fillings that are the truth, spaces around them aside",
        }
        self.data = {"source": source, "stories": len(stories[:limit]), "left_out": dict(sorted(left_out.items()))}

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Fill and score every item with every filler."""
        settings = [item.id.partition(":")[0] for item in items]
        rows: list[dict[str, Any]] = [{"figures": {setting: {}}, "texts": {}} for setting in settings]
        for filler in self._fillers:
            for chosen in sorted({setting == CHOSEN for setting in settings}):
                places = [i for i, setting in enumerate(settings) if (setting == CHOSEN) == chosen]
                found = filler.fill([Blanked(*items[i].content) for i in places], batch, self._sizes if chosen else None)
                for i, filling in zip(places, found):
                    text = first_sentence(filling.text) if chosen and filler.sees == LEFT else filling.text
                    rows[i]["figures"][settings[i]][filler.sees] = figures(Blanked(*items[i].content), text, filling)
                    rows[i]["texts"][filler.sees] = text
        return [{"truth": item.content[1], **row} for item, row in zip(items, rows)]


def blanked(story: Story, begin: int, end: int) -> Blanked:
    """The story with sentences from `begin` up to `end` blanked. Every piece has the space before it."""
    before, truth, after = (" ".join(story.sentences[cut]) for cut in (slice(begin), slice(begin, end), slice(end, None)))
    return Blanked(before, f" {truth}", f" {after}", story.fact)


def figures(blanked: Blanked, text: str, filling: Filling) -> dict[str, tuple[float, float]]:
    """What an item adds to every column of its row."""
    scores = rouge(blanked.truth, text)
    scores["exact"] = float(text.strip() == blanked.truth.strip())
    if blanked.fact is not None:
        scores["has the fact"] = float(blanked.fact in re.findall(r"\w+", text))
    return {**{name: (score, 1.0) for name, score in scores.items()}, "nats per token": (filling.nats, filling.tokens)}


def first_sentence(text: str) -> str:
    """The text up to the first end of a sentence."""
    return re.split(r"(?<=[.!?])\s", text.lstrip(), maxsplit=1)[0]


def read_stories(file: str, skip_bad: bool, left_out: Counter[str]) -> list[Story]:
    """The stories of a CSV file, of Story Cloze or with the columns sentence1 to sentence5, or of JSON lines.

    A JSON line has those fields, or `sentences`, a list of five. Raises `UserError` for a missing file or column; for a
    line without a whole story too, unless such are to be counted in `left_out`.
    """
    stories = []
    for where, row in _csv_rows(file) if file.endswith(".csv") else _json_rows(file):
        try:
            with located(where):
                value = row() if callable(row) else row
                stories.append(Story(str(value.get("InputStoryid") or value.get("id") or where), _sentences(value)))
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}; mend it, or pass over such with --skip-bad") from None
            left_out["broken line"] += 1
    return stories


def _csv_rows(file: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(whole_text(file).removeprefix("\ufeff"), newline=""))
    columns = reader.fieldnames or ()
    known = (*CLOZE, RIGHT) if any(name in columns for name in CLOZE) else PLAIN
    missing = [name for name in known if name not in columns]
    if missing:
        raise UserError(f"{file} has no column '{missing[0]}'; it has {', '.join(columns) or 'none'}")
    for row in reader:
        yield f"{file}:{reader.line_num}", row


def _json_rows(file: str) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """Lines that are parsed when they are asked for, so that one that is broken does not end the file."""
    with opened(file) as (source, name):
        for where, _, line in raw_lines(source, name):
            yield where, functools.partial(parse_object, line, where)


def _sentences(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "sentences" in row:
        found = row["sentences"]
    elif CLOZE[0] in row:
        if row.get(RIGHT) not in ("1", "2", 1, 2):
            raise UserError(f"{RIGHT} is {row.get(RIGHT)!r}; it must be 1 or 2")
        ending = CLOZE[SENTENCES - 2 + int(row[RIGHT])]
        found = [row.get(name) for name in (*CLOZE[: SENTENCES - 1], ending)]
    else:
        found = [row.get(name) for name in PLAIN]
    if not isinstance(found, list) or len(found) != SENTENCES:
        raise UserError(f"a story has {SENTENCES} sentences")
    for number, sentence in enumerate(found, 1):
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(f"sentence {number} is missing")
        check_text(f"sentence {number}", sentence)
    return tuple(sentence.strip() for sentence in found)


def read(_: str, options: Options, left_out: Counter[str]) -> Ready:
    """The stories of `options.stories`, or synthetic ones. Raises `UserError` for what cannot be read."""
    from a3jax.evaluate.synthetic_stories import SYNTHETIC, synthetic_stories

    decoding = options.decoding.checked()
    scorer()
    sizes = parse_sizes(options.sizes)
    settings = [{"one": ONE, "three": THREE, "chosen": CHOSEN}[setting] for setting in dict.fromkeys(options.settings)]
    if options.stories is None:
        source, stories = SYNTHETIC, synthetic_stories(options.limit, decoding.seed)
    else:
        source, stories = options.stories, read_stories(options.stories, options.skip_bad, left_out)
    return lambda models: Stories(
        fillers(models.model, models.baseline, decoding),
        source,
        stories,
        left_out,
        settings,
        sizes,
        options.longest,
        options.limit,
    )
