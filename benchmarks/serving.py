"""A running service under clients that come at random moments: how much it writes, and how long they wait.

a3jax serve CHECKPOINT &
python benchmarks/serving.py http://127.0.0.1:8000 --every 0.3

Every client sends one request, a prompt and how many tokens it wants, and reads the stream. Times between clients are
exponential, and all that is drawn follows from the seed, so that two services are asked the same. The whole is played
`--warm` times before it is timed, so that what it takes is compiled; look at how the plays before the last agree.
"""

import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from common import run, show
from tyro.conf import Positional, arg

WORDS = ("def", "return", "if", "else", "for", "in", "while", "class", "import", "None", "True", "self", "print", "len")


@dataclass(frozen=True)
class Options:
    """A running service under clients that come at random moments."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """Of the service."""
    requests: int = 32
    """How many come."""
    every: float = 0.3
    """Seconds between two of them, on average."""
    prompt: tuple[int, int] = (8, 48)
    """Words of a prompt, from and to."""
    tokens: tuple[int, int] = (8, 64)
    """Tokens that a request wants, from and to."""
    warm: int = 2
    """How often all is played before it is timed."""
    seed: int = 0
    json: bool = False
    """Print JSON."""


class Answer(NamedTuple):
    """What a client saw; seconds since it came."""

    first: float
    """To the first piece of text."""
    last: float
    tokens: int
    end: float
    """When the answer was there, on the clock of all clients."""


def main(options: Options) -> None:
    """Ask several times, and tell of the last."""
    for _ in range(options.warm):
        _, seconds = play(options)
        print(f"warm: {seconds:.1f} s")
    answers, seconds = play(options)
    figures = {
        "tokens": sum(one.tokens for one in answers),
        "seconds": seconds,
        "tokens a second": sum(one.tokens for one in answers) / seconds,
        "to the first text, mean": statistics.mean(one.first for one in answers),
        "to the first text, 90%": quantile([one.first for one in answers]),
        "to the end, mean": statistics.mean(one.last for one in answers),
        "to the end, 90%": quantile([one.last for one in answers]),
    }
    show("Serving", [{"": name, "figure": float(value)} for name, value in figures.items()], options.json)


def play(options: Options) -> tuple[list[Answer], float]:
    """All clients, each in a thread, and the seconds from the first request to the last answer."""
    rng = random.Random(options.seed)
    address = urllib.parse.urlsplit(options.url).netloc
    answers: list[Answer] = []
    threads = []
    begin = time.perf_counter()
    for number in range(options.requests):
        body = {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(*options.prompt))),
            "max_tokens": rng.randint(*options.tokens),
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        thread = threading.Thread(target=lambda body=body: answers.append(ask(address, body)))
        thread.start()
        threads.append(thread)
        time.sleep(rng.expovariate(1 / options.every))
    for thread in threads:
        thread.join()
    return answers, max(one.end for one in answers) - begin


def ask(address: str, body: dict[str, Any]) -> Answer:
    """One client."""
    begin, first, tokens = time.perf_counter(), 0.0, 0
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            first = first or time.perf_counter() - begin
            tokens = event["usage"]["completion_tokens"] if event["usage"] else tokens
    connection.close()
    end = time.perf_counter()
    return Answer(first or end - begin, end - begin, tokens, end)


def quantile(values: list[float]) -> float:
    """What nine of ten do not exceed."""
    return sorted(values)[int(0.9 * (len(values) - 1))]


if __name__ == "__main__":
    run(main, Options)
