"""Many runs of one experiment, side by side: what varies, running them, and what came of it.

`combine` has the combinators of which an experiment's `sweep()` is built; `trials` applies what they say to the experiment;
`schedule` runs the trials as processes; `halving` chooses which go on; `status` says how far each is, from its folder alone;
`curves` reads what they measured, and `page` draws it.
"""

from a3jax.experiment.combine import Trials, chain, log_uniform, product, sample, seeds, uniform, zip_

__all__ = ["Trials", "chain", "log_uniform", "product", "sample", "seeds", "uniform", "zip_"]
