"""OpenAI's own client for Python against a running service: what it sends is understood, and it understands what comes.

a3jax serve CHECKPOINT &
python benchmarks/openai_client.py http://127.0.0.1:8000 [KEY]

It needs the package openai, and nothing of a3jax. It ends with an AssertionError where the two do not understand each other.
"""

import contextlib
import sys
from typing import Any

import openai


def main(url: str, key: str = "none") -> None:
    """Ask for everything once."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    (model,) = (one.id for one in client.models.list())
    assert client.models.retrieve(model).id == model
    ask = client.completions.create
    greedy = {"model": model, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}

    whole = ask(**greedy)
    assert whole.usage.completion_tokens <= 12
    assert whole.choices[0].finish_reason in ("stop", "length")
    print(repr(whole.choices[0].text))
    streamed = list(ask(**greedy, stream=True))
    assert "".join(event.choices[0].text for event in streamed) == whole.choices[0].text
    assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    *_, last = ask(**greedy, stream=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], whole.usage)

    several = ask(model=model, prompt=["a", "b"], n=2, max_tokens=4, logprobs=1, seed=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    for choice in several.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset) == len(choice.logprobs.tokens)
    with contextlib.suppress(openai.BadRequestError):  # not every model has a chat template
        said = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=4)
        assert said.choices[0].message.role == "assistant"
        print(repr(said.choices[0].message.content))
    (scored,) = ask(model=model, prompt="The capital", max_tokens=0, echo=True, logprobs=2).choices
    assert scored.text == "".join(scored.logprobs.tokens) == "The capital"
    assert all(one is None or 1 <= len(one) <= 3 for one in scored.logprobs.top_logprobs)
    assert ask(model=model, prompt="a", suffix="b", max_tokens=4, extra_body={"mode": "speculative"}).choices[0].text

    refused: dict[str, tuple[dict[str, Any], type[Exception]]] = {
        "max_tokens": ({"max_tokens": 10**9}, openai.BadRequestError),
        "n": ({"n": 10**6}, openai.BadRequestError),
        "temperature": ({"temperature": -1}, openai.BadRequestError),
        "model": ({"model": "another"}, openai.NotFoundError),
        "prompt": ({"prompt": [10**9]}, openai.BadRequestError),
    }
    for param, (fields, kind) in refused.items():
        found: Any = None
        try:
            ask(**{"model": model, "prompt": "a", **fields})
        except openai.APIStatusError as error:
            found = error
        assert (type(found), found.param) == (kind, param), found
        print(f"{param}: {found.body['message']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
