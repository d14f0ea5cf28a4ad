"""The protocol `diffullama`: how DiffuLLaMA's scripts ask and judge, which arXiv 2601.13228 says that it follows.

What is asked is read off evaluation/eval-diffullama.py of github.com/HKUNLP/DiffuLLaMA at commit c17e897 (arXiv 2410.17891),
and, for the prompt of TriviaQA, in whose place that script loads SQuAD, off evaluation/eval-llm.py beside it. Every string is
tokenized by itself, as it stands here. All of the protocol is in this file: of choices what is given and what is scored
(`a3jax.evaluate.least_loss`), of blanks what stands around them, how long they are, how their tokens are drawn, and when an
answer is right (`a3jax.evaluate.drawn`). What differs from the scripts stands in docs/evaluate.md.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from a3jax.data.tokenizer import TextCodec
from a3jax.decode.settings import DEFAULTS, DecodingOptions
from a3jax.errors import UserError
from a3jax.evaluate.drawn import Blank, Drawing, Drawn, Pace
from a3jax.evaluate.least_loss import LeastLoss, Question
from a3jax.evaluate.local_data import Row, read_rows
from a3jax.evaluate.options import Models, Options, Ready
from a3jax.evaluate.rouge import rouge, scorer
from a3jax.evaluate.stories import read_stories
from a3jax.evaluate.task import Task


def _hellaswag(row: Mapping[str, Any]) -> Question:
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple((_without_brackets(ending),) for ending in row["endings"])
    return Question(_without_brackets(f"{row['activity_label']}: {context}"), endings, int(row["label"]))


def _without_brackets(text: str) -> str:
    """Text of WikiHow without its marks: [title] ends a sentence, and others mean nothing."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Mapping[str, Any]) -> Question:
    """What follows is scored too: of the option alone the one more common would win."""
    before, _, after = row["sentence"].partition("_")
    options = tuple((row[name], after.strip()) for name in ("option1", "option2"))
    return Question(before, options, int(row["answer"]) - 1)


def _social_iqa(row: Mapping[str, Any]) -> Question:
    answers = tuple((row[name],) for name in ("answerA", "answerB", "answerC"))
    return Question(f"Question: {row['context']} {row['question']}\nAnswer: ", answers, int(row["label"]) - 1)


def _piqa(row: Mapping[str, Any]) -> Question:
    solutions = tuple((f" {row[name]}",) for name in ("sol1", "sol2"))
    return Question(f"Question: {row['goal']}\nAnswer: ", solutions, row["label"])


def _triviaqa(row: Mapping[str, Any], codec: TextCodec) -> Blank:
    aliases = tuple(row["answer"]["aliases"])
    longest = max(len(codec.encode(alias)) for alias in aliases)
    return Blank(f"Question: {row['question']}?\nAnswer: ", "", longest, aliases)


def _lambada(row: Mapping[str, Any], codec: TextCodec) -> Blank:
    """The last word has as many tokens as the passage has more than what is before it."""
    passage = row["text"].strip()
    *words, last = passage.split()
    before = " ".join(words)
    return Blank(before, "", len(codec.encode(passage)) - len(codec.encode(before)), (last,))


def _story(row: Mapping[str, Any], codec: TextCodec) -> Blank:
    first, second, third, fourth, fifth = row["sentences"]
    return Blank(f"{first} {second}", f"{fourth} {fifth}", len(codec.encode(third)), (third,))


def _has_an_alias(text: str, aliases: Sequence[str]) -> dict[str, float]:
    written = _normalized(text)
    return {"accuracy": float(any(one and one in written for one in map(_normalized, aliases)))}


def _normalized(text: str) -> str:
    """In small letters, without punctuation, articles, and more than one space, as SQuAD and TriviaQA compare answers."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def _is_the_word(text: str, words: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(text.strip() == words[0])}


def _like_the_sentence(text: str, sentences: Sequence[str]) -> dict[str, float]:
    return rouge(sentences[0], text)


CHOICES: dict[str, Callable[[Mapping[str, Any]], Question]] = {
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "social_iqa": _social_iqa,
    "piqa": _piqa,
}
BLANKS: dict[str, Drawing] = {
    "triviaqa": Drawing(_triviaqa, _has_an_alias, first=2000, temperature=0.9, top_p=0.9),
    "lambada": Drawing(_lambada, _is_the_word, temperature=1.0, top_p=0.9),
    "stories": Drawing(_story, _like_the_sentence, first=1000, temperature=0.9, top_p=0.9, steps=32),
}


def read(name: str, options: Options, left_out: Counter[str]) -> Ready:
    """The rows of `options.data / name`, or `options.stories`. Raises `UserError` for what cannot be read or combined."""
    if name in CHOICES:
        return _read_choices(name, options, left_out)
    drawing = BLANKS[name]
    pace = _pace(name, options.decoding, drawing)
    source, rows = _read_stories(options, left_out) if name == "stories" else _read_rows(name, options, left_out)

    def ready(models: Models) -> Task:
        return Drawn(name, models.model, drawing, pace, source, rows, left_out, options.skip_bad, options.limit)

    return ready


def _read_choices(name: str, options: Options, left_out: Counter[str]) -> Ready:
    decoding = options.decoding.checked()
    if not decoding.is_plain:
        raise UserError(f"{name} is answered in a fixed order; leave --mode {decoding.mode} out, or name an --order")
    source, rows = _read_rows(name, options, left_out)
    order, seed, limit = decoding.order, decoding.seed, options.limit

    def ready(models: Models) -> Task:
        return LeastLoss(name, models.model, CHOICES[name], order, seed, source, rows, left_out, options.skip_bad, limit)

    return ready


def _pace(name: str, options: DecodingOptions, drawing: Drawing) -> Pace:
    """Tokens are drawn as the protocol has it, and places decided as the user says.

    Who names no mode and no order gets what the scripts do: in so many steps, the places whose token is most probable first.
    """
    fixed: dict[str, Any] = {"temperature": drawing.temperature, "top_p": drawing.top_p}
    for option in (*fixed, "top_k", "min_p", "repetition_penalty", "ends", "stop"):
        if getattr(options, option) != getattr(DEFAULTS, option):
            how = " and ".join(f"{of.replace('_', '-')} {value}" for of, value in fixed.items())
            raise UserError(f"protocol diffullama draws {name} with {how}; leave --{option.replace('_', '-')} out")
    fixed["heal"] = False  # every string by itself
    asked = options.checked(**fixed)
    if (asked.mode, asked.order) != (DEFAULTS.mode, DEFAULTS.order):
        return Pace(asked)
    return Pace(options.checked(**fixed, mode="dynamic", certainty="confidence", threshold=0.0, commit=1), drawing.steps)


def _read_rows(name: str, options: Options, left_out: Counter[str]) -> tuple[str, list[Row]]:
    if options.data is None:
        raise UserError(f"{name} needs --data, a folder whose folder '{name}' has the files of the data set")
    return str(options.data / name), read_rows(options.data, name, options.skip_bad, left_out)


def _read_stories(options: Options, left_out: Counter[str]) -> tuple[str, list[Row]]:
    scorer()
    if options.stories is None:
        raise UserError("protocol diffullama fills in true stories; name their file with --stories")
    stories = read_stories(options.stories, options.skip_bad, left_out)
    return options.stories, [Row(story.id, {"sentences": story.sentences}) for story in stories]
