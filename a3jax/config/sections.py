"""The parts of an experiment, each a group of options that the command line names by its dotted name."""

import re
from dataclasses import dataclass
from typing import Literal

from a3jax.config.model import AdapterStream
from a3jax.curriculum.stage import HeldOutFigure
from a3jax.errors import UserError

Objective = Literal["a3", "diffusion", "block_diffusion", "fim", "ar"]
AttentionPath = Literal["auto", "dense", "chunked", "splash", "flash"]
"""How attention is computed (`a3jax.attention.interface`)."""
Remat = Literal["none", "dots", "offload", "full"]
MASKED: tuple[Objective, ...] = ("diffusion", "block_diffusion")
"""Those that learn from masked tokens, and have a bound in place of a likelihood."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Masked diffusion adapted from an autoregressive model (arXiv 2410.17891, 2502.09992), or of blocks (2503.09573)."""

    anneal: int = 0
    """Steps over which rows come to see the text on their right, from none of it to all of it; 0: all from the first step."""
    block: int = 4
    """Of block_diffusion: tokens of a block."""


@dataclass(frozen=True)
class FimConfig:
    """Documents rearranged so that a left-to-right model learns to fill in their middle (arXiv 2207.14255)."""

    rate: float = 0.9
    """Share of the documents of a window that are rearranged."""
    spm: float = 0.5
    """Share of these in which the prefix stands between suffix and middle (SPM); in the others it comes first (PSM)."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens before the prefix, the suffix and the middle: the tokenizer's own, or unused ones."""


@dataclass(frozen=True)
class WeightAt:
    """A point of a schedule of weights."""

    step: int
    weight: float


@dataclass(frozen=True)
class SourceConfig:
    """One of the sources of a mixture."""

    path: str
    """A folder written by `a3jax prepare`, or what it could read, which is then prepared into the run folder first."""
    weight: float = 1.0
    """Its share of the windows, relative to the weights of the other sources."""
    schedule: tuple[WeightAt, ...] = ()
    """Weights that change over the steps, in place of `weight`: linear between points, constant outside them."""
    chat: tuple[str, ...] = ()
    """Of what is no prepared corpus: the columns of its chats, as `a3jax prepare --chat` has them."""


@dataclass(frozen=True)
class DataConfig:
    """Where training tokens come from, and how they are cut into windows."""

    path: str = "data"
    """A folder written by `a3jax prepare`, or what it could read, which is then prepared into the run folder first."""
    length: int = 2048
    """L, tokens per packed window."""
    batch: int = 8
    """B, windows per optimizer step over all devices."""
    workers: int = 0
    """Reader processes; 0 reads in the training process."""
    mixture: tuple[SourceConfig, ...] = ()
    """Several corpora, in place of `path`."""
    packing: Literal["concat", "best_fit", "truncate"] = "concat"
    """`concat` cuts the stream of documents every L tokens; `best_fit` keeps documents whole where they fit, and pads;
    `truncate` gives every document a window, leaves out what does not fit, and pads."""
    overlap: int = 0
    """Tokens before a cut that are read again as context after it, in documents longer than L; with `best_fit`."""
    chat: tuple[str, ...] = ()
    """Of a `path` that is no prepared corpus: the columns of its chats, as `a3jax prepare --chat` has them."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, of one source where only `path` is given."""
        return self.mixture or (SourceConfig(self.path, chat=self.chat),)

    @property
    def names_corpora(self) -> bool:
        """Whether `path` or `mixture` was given."""
        return bool(self.mixture) or self.path != DataConfig.path


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or another, with warm-up. By default the learning rate of all weights, the weight decay and the steps of warm-up
    are those of arXiv 2601.13228; the learning rate of adapters, the schedule, the betas and the clipping are ours."""

    peak_lr: float | None = None
    """None: 2e-5 where all weights are trained, 2e-4 for adapters."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    warmup: int = 50
    """Steps of linear warm-up."""
    decay: float = 0.2
    """Fraction of all steps over which `wsd` decays to `final_lr`."""
    final_lr: float = 0.1
    """Learning rate at the end, as a fraction of the peak."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Of matrices, not of norms, biases and query seeds. Adapters are matrices: it draws them towards the source model."""
    clip: float = 1.0
    """Largest global gradient norm."""
    per_stage: bool = False
    """Every stage of the curriculum begins with moments of zero and a warm-up of its own, and its schedule ends where it
    does, as if each were a run that goes on from the weights of the one before."""
    name: Literal["adamw", "adafactor", "muon", "lion"] = "adamw"
    """Those of Optax: `adafactor` keeps next to nothing beside the weights, `lion` and `muon` one moment in place of two. The
    learning rate means the same for `muon` and `adafactor`; for `lion` take a third to a tenth."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """How moments are kept; they are computed in float32."""


@dataclass(frozen=True)
class AdaptConfig:
    """Which parameters change: adapters of the query stream where there is a source, unless this says otherwise."""

    rank: int | None = None
    """Inner width of low-rank changes to the weights: these and query seeds are trained, and all weights stay. 0: there
    are none, and all weights are trained. None: the source's own adapters or, if it has none, new ones of rank 64; 0
    without a source, and for other objectives than a3."""
    stream: AdapterStream = "query"
    """Whose weights these change. With `query` the content stream stays the source model, and nothing is forgotten of reading
    from left to right."""
    frozen: tuple[str, ...] = ()
    """Of what is trained, parameters that stay all the same: by name (embedding, query_seed, gate, ...), or all `norms` or
    `embeddings`."""
    query_seed: Literal["kept", "normal"] = "kept"
    """What the learned vector of queries begins as: the source's, which after import is the mean token embedding, or draws
    from N(0, 1), as in the authors' code of arXiv 2601.13228."""
    balance: float | None = None
    """Weight of the load-balancing loss of experts, where their routers are trained; None: the source's own."""
    distill: float = 0.0
    """Share of the loss that is the cross-entropy to the source model's own distribution of a token, given all tokens
    before it, in place of the token itself. It costs a forward pass of one stream, and the source's weights in memory."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1, which takes what the others leave."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1
    """Splits the slots of a window: for windows too long for one device."""
    slices: int = 1
    """Parts of the machine that only a data-centre network joins: TPU slices, or groups of processes."""
    expert: int = 1
    """Splits the batch, and the experts of a model that has some."""


@dataclass(frozen=True)
class TrainConfig:
    """How a step is computed, and what is written when."""

    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of products; parameters, optimizer, softmax statistics and loss are float32. A CPU without instructions
    for bfloat16 is slower in it."""
    attention: AttentionPath = "auto"
    """`auto` takes the one made for the platform: `splash` on TPU, `flash` on NVIDIA GPUs, else `chunked`."""
    attention_block: int | None = None
    """Rows and keys of a block of `splash`, a multiple of 128; None: 1024 where heads are no wider than 128 and windows
    have 8192 tokens or more, which it divides (`a3jax.attention.blocks`); otherwise 512."""
    remat: Literal["auto", Remat] = "auto"
    """What the forward pass keeps (`a3jax.train.remat`); `auto` is `dots` where that fits into memory, else `full`."""
    accumulate: int = 1
    """Micro-batches per optimizer step; must divide the batch."""
    loss_chunk: int = 1024
    """Rows of one device whose logits exist at one time."""
    executables: str | None = None
    """A folder of compiled steps (`a3jax plan --save`) to be loaded; those of another experiment or machine are refused."""
    log_every: int = 1
    eval_every: int = 200
    eval_windows: int = 16
    """Held-out windows per evaluation."""
    eval_stages: bool = False
    """Evaluate at the end of every stage too, and log the NLL by rank and by what is visible; the runs of a sweep do."""
    sample: str | None = None
    """A text with blanks, such as `def area(r): [[8]] * r`, that is filled and printed at every evaluation."""
    stop_at: int | None = None
    """The step that ends the run for now; the learning rate goes on as if there were none."""
    save: Literal["trained", "whole"] = "trained"
    """What checkpoints hold of the weights: those that are trained, where the others lie unchanged in the run's `source`, of
    which the run keeps the place and a SHA-256; or all."""
    save_every: int = 200
    save_minutes: float | None = None
    """Besides, save when so many minutes have gone by since the last time."""
    keep: int = 2
    """Checkpoints kept besides the newest."""
    keep_hours: float | None = None
    """Beyond those, one checkpoint every so many hours stays for good."""
    keep_best: int = 0
    """Beyond those, so many with the lowest held-out NLL in the order `best_order` stay."""
    best_order: HeldOutFigure = "random_4"
    wandb: str | None = None
    """A project of Weights & Biases that is shown the metrics too."""


@dataclass(frozen=True)
class GuardConfig:
    """What becomes of a bad step: one whose loss or gradient is not finite, or whose loss jumps. It changes no parameter."""

    action: Literal["stop", "skip", "rollback"] = "stop"
    """`stop` the run; `skip` the step; or roll back to the last checkpoint and go on with the batches that come next."""
    spike: float | None = None
    """Nats above the running mean of the losses of this kind of stage that make a jump; None: only what is not finite."""
    limit: int = 10
    """Bad steps one after the other, or rollbacks to one checkpoint, after which the run stops all the same."""


@dataclass(frozen=True)
class ProfileConfig:
    """Tracing of a few steps, to be looked at in TensorBoard or XProf."""

    steps: str | None = None
    """`10:13` traces steps 10, 11 and 12 into `RUN/events`."""

    @property
    def range(self) -> range:
        """The steps. Raises `UserError` for what is none."""
        if self.steps is None:
            return range(0)
        first, _, last = self.steps.partition(":")
        if not re.fullmatch("[0-9]{1,9}:[0-9]{1,9}", self.steps) or not 0 < int(first) < int(last):
            raise UserError(f"profile.steps is {self.steps!r}; it must be FIRST:LAST with 0 < FIRST < LAST, such as 10:13")
        return range(int(first), int(last))
