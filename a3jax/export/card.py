"""The model card (README.md) of an exported folder: what the weights are and what happened to them, from the record."""

from a3jax.checkpoint.provenance import Provenance
from a3jax.config import ModelConfig
from a3jax.model.parameters import count

_USE_BOTH = """\
```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
ids = tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids

model(ids).logits  # left to right: [:, t] predicts token t + 1
model.generate(ids, max_new_tokens=32)  # left to right, by transformers: do_sample, num_beams, streamer and the like

groups = torch.randperm(ids.shape[1])[None] // 4
model(ids, groups=groups).logits  # any order: [:, t] predicts token t from the tokens of smaller groups
blank = torch.zeros_like(ids, dtype=torch.bool)
blank[:, 2:5] = True
filled = model.infill(ids, blank, group_size=2, order="random")  # fills ids where blank is True
print(tokenizer.decode(filled[0]))
```

`groups` holds one integer per token; tokens with smaller ones come first, equal ones are predicted in parallel. Blanks
are filled with tokens of plain text only, in the order "in_order", "random" or "spans", or by given ranks.
The code is the folder's own, four files `*_a3.py`; it needs torch and transformers, nothing else.
"""

_USE_FAMILY = """\
Plain {family} weights, for anything that loads such models: the left-to-right view. The learned vector that seeds
queries of unknown predecessors, and with it any-order generation, is not part of them.
"""

_PIPELINE = """\
```python
from transformers import pipeline

print(pipeline("text-generation", "{name}")("The capital of France is", max_new_tokens=32)[0]["generated_text"])
```
"""

_LEARNED = """\
This model was trained with learned query seeds: its queries never stand on the token before, so nothing trained the
predictions of the left-to-right view. The two-stream export generates left to right with its queries.
"""

_MASKED = """\
This model was trained by masked diffusion. Its rows see the text on both sides, and read the vector of `mask_vector.npy` in
the place of masked tokens; [:, t] predicts token t + 1. What the weights predict from left to right, nothing trained.

```python
import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
ids = AutoTokenizer.from_pretrained("{name}")("The capital of France is Paris.", return_tensors="pt").input_ids
masked = torch.zeros_like(ids, dtype=torch.bool)
masked[:, 2:5] = True

read = model.get_input_embeddings()(ids)
read[masked] = torch.from_numpy(numpy.load("{name}/mask_vector.npy")).to(read.dtype)
everything = torch.zeros(1, 1, ids.shape[1], ids.shape[1], dtype=read.dtype)  # a mask that is added to scores
logits = model(inputs_embeds=read, attention_mask=everything).logits
```
"""
_BLOCKS = """\
Blocks of {block} tokens come from left to right: a row sees the blocks before its own, and its own.
"""


_USE_ADAPTERS = """\
    a3jax import SOURCE models/{name} --adapters {name}
    a3jax generate models/{name} --text "def area(r): return [[..16]] * r"

`SOURCE` is {source}, as a Hugging Face folder, a GGUF file or a hub name. From left to right the model is the source, bit for
bit: the adapters change the predictions of queries in other orders alone.
"""


_USE_PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{source}"), "{name}")
```

This is the left-to-right view, the source with its content stream changed. The query seed of unknown predecessors, and with
it any-order generation, is not part of it.
"""


def peft_card(name: str, config: ModelConfig, record: Provenance) -> str:
    """Markdown for a folder called `name` that holds adapters of both streams for PEFT."""
    front = {"library_name": "peft", "base_model": record.source, "pipeline_tag": "text-generation"}
    what = f"Adapters of rank {config.adapter_rank} of {record.source}, trained with a3jax: {record.steps:,} steps, "
    what += f"{record.tokens:,} tokens, {' → '.join(record.stages) or 'no stages'}."
    return _card(name, front, what, {}, _USE_PEFT.format(name=name, source=record.source))


def adapter_card(name: str, config: ModelConfig, record: Provenance) -> str:
    """Markdown for a folder called `name` that holds adapters alone."""
    facts = {
        "Source": f"{record.source} ({'dequantized to ' if record.dequantized else ''}{record.dtype})",
        "Adapters": f"rank {config.adapter_rank}, of the query stream",
        "Adaptation": f"{record.steps:,} steps, {record.tokens:,} tokens",
        "Curriculum": " → ".join(record.stages) or "none",
    }
    front = {"library_name": "a3jax", "tags": "[a3, any-order, infilling, adapters]"}
    what = "Adapters that make a left-to-right language model an any-order one (A3, arXiv 2601.13228), trained with a3jax."
    return _card(name, front, what, facts, _USE_ADAPTERS.format(name=name, source=record.source))


def model_card(name: str, config: ModelConfig, record: Provenance, both: bool) -> str:
    """Markdown for a folder called `name`, of both streams or of the family's own class."""
    facts = {
        "Source": f"{record.source} ({record.origin})",
        "Family": config.family,
        "Parameters": f"{count(config) - (0 if both else config.width):,}",
        "Context": f"{config.context:,} tokens",
        "Query seeding": config.seeding,
        "Content sees up to": f"the end of its {config.content}",
        "Adaptation": f"{record.steps:,} steps, {record.tokens:,} tokens" if record.steps else "none",
        "Objective": record.objective,
        "Curriculum": " → ".join(record.stages) or "none",
    }
    tags = "a3, any-order, infilling" if record.objective == "a3" else record.objective
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": f"[{tags}]"}
    what = "An any-order, any-subset autoregressive language model (A3, arXiv 2601.13228), "
    if record.objective != "a3":
        what = f"A language model of objective {record.objective}, "
    if record.source == "random":
        what += "trained from random weights and exported with a3jax."
    else:
        what += "adapted from a left-to-right one and exported with a3jax. "
        what += "The licence of the source's weights applies to these too."
    use = [_USE_BOTH if both else _USE_FAMILY]
    if not both and config.seeding == "learned":
        use.append(_LEARNED)
    if record.mask_block is not None:
        use.append(_MASKED)
        use += [_BLOCKS] if record.mask_block else []
    elif not both:
        use.append(_PIPELINE)
    return _card(name, front, what, facts, "\n".join(use).format(name=name, family=config.family, block=record.mask_block))


def _card(name: str, front: dict[str, str], what: str, facts: dict[str, str], use: str) -> str:
    """The front matter that hubs read, what the folder holds, a table of `facts` if there are any, and how it is used."""
    head = ["---", *(f"{key}: {value}" for key, value in front.items()), "---"]
    table = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items()), ""] if facts else []
    return "\n".join([*head, "", f"# {name}", "", what, "", *table, "## Use", "", use])
