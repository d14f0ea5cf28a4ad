"""Chats: tokens and loss mask are those of transformers for the same messages; one line for everything that can be wrong."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from small_tokenizers import KINDS

from a3jax.data.chat_template import FILE, template_of
from a3jax.data.corpus import TokenStream, read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError

HEAD = "{% for message in messages %}{{ '<s>' + message['role'] + '\n' }}"
SAID = "{{ message['content'] | trim + '</s>' + '\n' }}"
ASKS = "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
PLAIN = HEAD + SAID + ASKS
MARKS = "{% if message['role'] == 'assistant' %}{% generation %}SAID{% endgeneration %}{% else %}SAID{% endif %}"
MARKED = HEAD + MARKS.replace("SAID", SAID) + ASKS
RICH = """{{- bos_token }}
{%- set ns = namespace(seen=0) %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {%- if message.role == 'assistant' %}
        {{- '[' ~ ns.seen ~ ']' }}{% generation %}{{ message.content ~ eos_token }}{% endgeneration %}
    {%- else %}
        {{- message | tojson }}{{ message.thinking if message.thinking is defined }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[' ~ ns.seen + 1 ~ ']' }}{% endif %}"""
CHATS = [
    [{"role": "user", "content": "Hello world"}, {"role": "assistant", "content": " The village é was quiet. "}],
    [
        {"role": "system", "content": "An old man, 3 * r"},
        {"role": "user", "content": "hello?", "reasoning": "the river"},
        {"role": "assistant", "content": "The sun had set"},
        {"role": "tool", "content": "<b> & 'x'"},
        {"role": "user", "content": "¶"},
        {"role": "assistant", "content": "the road 🙂 forgets"},
        {"role": "assistant", "content": "where it came from"},
    ],
]


@pytest.fixture(params=["byte_level", "metaspace"])
def tokenizer(request, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, content in KINDS[request.param]().items():
        (folder / name).write_bytes(content)
    return folder


def prepared(tmp_path, tokenizer, source, chat=("messages",), **how):
    prepare([source], tmp_path / "out", Preparation(str(tokenizer), chat=chat, held_out=0.0, workers=1, **how))
    stream = TokenStream(tmp_path / "out", read_manifest(tmp_path / "out"), "train")
    span = stream.read(np.array([0]), np.array([len(stream)]))
    edges = np.flatnonzero(span.first)[1:]
    return [(t.tolist(), (~g).tolist()) for t, g in zip(np.split(span.tokens, edges), np.split(span.given, edges))]


def lines(tmp_path, *rows):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def theirs(tokenizer, template, chat):
    """What transformers makes of a chat: its tokens, and which of them are the assistant's."""
    out = transformers.AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    return out["input_ids"], [bool(said) for said in out["assistant_masks"]]


@pytest.mark.parametrize(
    ("ours", "marked"), [(MARKED, MARKED), (PLAIN, MARKED), (RICH, RICH)], ids=["marked", "plain", "rich"]
)
def test_tokens_and_mask_are_those_of_transformers(tmp_path, tokenizer, ours, marked):
    (tokenizer / FILE).write_text(ours)
    found = prepared(tmp_path, tokenizer, lines(tmp_path, *({"messages": chat} for chat in CHATS)))
    assert found == [theirs(tokenizer, marked, chat) for chat in CHATS]
    assert (tmp_path / "out" / FILE).read_text() == ours
    template = template_of(load_codec(tokenizer), str(tokenizer))
    asked = transformers.AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        CHATS[0][:1], chat_template=ours, add_generation_prompt=True, tokenize=False
    )
    assert template.render(CHATS[0][:1], reply=True) == asked


def test_every_shape_and_source_of_a_pair_gives_the_same(tmp_path, tokenizer):
    (tokenizer / FILE).write_text(PLAIN)
    question, answer = "Hello?", "Hello world"
    system = {"role": "system", "content": "hills"}
    pair = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    shared = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    cases = {
        ("messages",): {"messages": pair},
        ("talk",): {"talk": shared},
        ("prompt", "completion"): {"prompt": question, "completion": answer},
        ("p", "c"): {"p": pair[:1], "c": pair[1:]},
        ("s", "q", "a"): {"s": "hills", "q": question, "a": answer},
        ("given", "said"): {"given": [system, *pair], "said": pair},
    }
    for chat, row in cases.items():
        expected = [system, *pair] if len(chat) == 3 else [system, *pair, *pair] if "given" in chat else pair
        ids, said = theirs(tokenizer, MARKED, expected)
        if "given" in chat:  # whoever speaks in a prompt, nothing of it is learned
            prompt = len(theirs(tokenizer, MARKED, [system, *pair])[0])
            said[:prompt] = [False] * prompt
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "chats.parquet")
        for source in (lines(tmp_path, row), tmp_path / "chats.parquet"):
            out = tmp_path / f"{chat[0]}-{source.suffix}"
            assert prepared(out, tokenizer, source, chat) == [(ids, said)], (chat, source)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "has a message 1 in 'messages' of the role 'robot', which is unknown",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "has no message of the assistant in 'messages'"),
        ({"messages": "hello"}, "has a text in 'messages', not a list of messages: name another with --chat"),
        ({"messages": [3]}, "has a message 1 in 'messages' that is no object but 3"),
        ({"messages": [{"content": "x"}]}, "has a message 1 in 'messages' without a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "has a message 1 in 'messages' without a content that is text"),
        ({"talk": []}, "has no 'messages'; it has talk: name one with --chat"),
        ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "is not Unicode text"),
        (
            {"messages": [{"role": "user", "content": "stop"}, {"role": "assistant", "content": "x"}]},
            f": OUT/{FILE} does not take these messages: no, said the template",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_position(tmp_path, tokenizer, row, message):
    (tokenizer / FILE).write_text(
        "{% if messages[0].content == 'stop' %}{{ raise_exception('no, said the template') }}{% endif %}" + PLAIN
    )
    source = lines(tmp_path, {"messages": CHATS[0]}, row, {"messages": CHATS[1]})
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, tokenizer, source)
    assert str(caught.value).startswith(
        f"{source}:2{'' if message[0] == ':' else ' '}{message.replace('OUT', str(tokenizer))}"
    )
    assert "\n" not in str(caught.value)
    found = prepared(tmp_path, tokenizer, source, on_error="skip")
    assert found == [theirs(tokenizer, MARKED, chat) for chat in CHATS]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ x", "chat_template.jinja:1 is no chat template: unexpected end"),
        (
            "{% for message in messages[-2:] %}{{ message.content }}{% endfor %}",
            "messages otherwise where more follow; put {% generation %}",
        ),
        ("{{ messages.append(3) }}", "does not take these messages"),
        ("{{ messages[0].__class__.mro() }}", "does not take these messages: access to attribute"),
        ("x{% generation %}{% endgeneration %}", "writes nothing that the assistant says"),
        (None, "has no chat template; prepare chats with --chat-template FILE"),
    ],
)
def test_a_template_that_does_not_do_is_one_line(tmp_path, tokenizer, template, message):
    if template is not None:
        (tokenizer / FILE).write_text(template)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, tokenizer, lines(tmp_path, {"messages": CHATS[1]}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_do_not_go_together_are_refused(tmp_path, tokenizer):
    (tmp_path / "x.txt").write_text("x")
    (tokenizer / FILE).write_text(PLAIN)
    with pytest.raises(UserError, match=r"x\.txt has no columns, and so no chats"):
        prepared(tmp_path, tokenizer, tmp_path / "x.txt")
    with pytest.raises(UserError, match="chat-template is for chats"):
        Preparation("bytes", chat_template="x")
    with pytest.raises(UserError, match="chat names 4 columns"):
        Preparation("bytes", chat=("a", "b", "c", "d"))


def test_a_template_of_ones_own_goes_with_the_corpus(tmp_path, tokenizer):
    (tmp_path / "mine.jinja").write_text(MARKED)
    prepared(tmp_path, tokenizer, lines(tmp_path, {"messages": CHATS[0]}), chat_template=str(tmp_path / "mine.jinja"))
    codec = load_codec(tmp_path / "out")
    template = template_of(codec, "out")
    assert template.source == MARKED
    assert template.turn_end(codec) == codec.tokenizer.token_to_id("</s>")
