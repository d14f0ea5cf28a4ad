"""ROUGE as papers report it: F1 times 100 of the package rouge-score, without stemming."""

import functools
from typing import Any

from a3jax.errors import UserError

KINDS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def rouge(truth: str, text: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2, ROUGE-L and their mean, from 0 to 100. Raises `UserError` where rouge-score is not installed."""
    found = scorer().score(truth, text)
    scores = {name: 100 * float(found[kind].fmeasure) for kind, name in KINDS.items()}
    return {**scores, "ROUGE mean": sum(scores.values()) / len(scores)}


@functools.cache
def scorer() -> Any:
    """The package's scorer."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("stories are scored with the package rouge-score; pip install 'a3jax[evaluate]'") from None
    return RougeScorer(list(KINDS), use_stemmer=False)
