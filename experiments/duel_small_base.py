"""The base of the small duel (experiments/duel_small.py): 1.3 million parameters, eight million tokens of the duel's text.

After the tokenizer and the data of experiments/duel_base.py:

a3jax train duel_small_base
"""

import dataclasses
import runpy
from pathlib import Path

from a3jax.config import Config, Stage

_LARGER = runpy.run_path(str(Path(__file__).with_name("duel_base.py")))
MODEL = dataclasses.replace(_LARGER["MODEL"], width=128, ff_width=352, layers=4, query_heads=4, kv_heads=2)
TOKENS = 8_000_000


def experiment() -> Config:
    """Half an hour on two cores."""
    larger: Config = _LARGER["experiment"]()
    return dataclasses.replace(
        larger,
        name="duel_small_base",
        model=MODEL,
        data=dataclasses.replace(larger.data, batch=16),
        curriculum=(Stage(tokens=TOKENS),),
        train=dataclasses.replace(larger.train, compute_dtype="float32"),
    )
