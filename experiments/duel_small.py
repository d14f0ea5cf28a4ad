"""The duel (experiments/duel.py) in a size for two cores: a base of 1.3 million parameters, in float32.

a3jax train duel_small_base
a3jax sweep run duel_small --at-once 1
python benchmarks/duel_figures.py rates --duel duel_small
a3jax sweep run duel_small --at-once 1
python benchmarks/duel_figures.py figures --duel duel_small --line-seeds 3
python benchmarks/duel_tables.py

The same arms, budgets and rates; steps of 4 windows in place of 16, so that 2% are a hundred steps and more. The plan, as
`python experiments/duel_small.py` prints it: 6.7e13 FLOPs for the base, 4.0e13 for the search, 1.5e14 for each seed.
"""

import dataclasses
import runpy
from pathlib import Path

_HERE = Path(__file__).parent
_BASE = runpy.run_path(str(_HERE / "duel_small_base.py"))
_LARGER = runpy.run_path(str(_HERE / "duel.py"))["DUEL"]
DUEL = dataclasses.replace(
    _LARGER,
    name="duel_small",
    base=_BASE["MODEL"],
    tokens=_BASE["TOKENS"],
    batch=4,
    train=dataclasses.replace(_LARGER.train, compute_dtype="float32"),
)
experiment, sweep = DUEL.experiment, DUEL.sweep

if __name__ == "__main__":
    DUEL.describe()
