"""Every choice a user makes, as frozen dataclasses.

A `ModelConfig` describes the network and lives beside its weights. A `Config` describes one experiment: a Python file in
`experiments/` returns one, the command line overrides its fields by dotted name, and the run folder keeps it as JSON
(`a3jax.files.strict`). Which values cannot be says `a3jax.experiment.check`.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from a3jax.curriculum.schedule import direct, settle
from a3jax.curriculum.stage import HeldOutOrder, Stage
from a3jax.errors import UserError, check_count, check_positive, check_token

Seeding = Literal["successor", "learned"]
AdapterStream = Literal["query", "both"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (Llama 3.1, `rope_type: llama3`); lengths in tokens.

    Raises `UserError` for a number that means nothing.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_positive(name, getattr(self, name))
        check_count("original_context", self.original_context)
        if not self.low_freq_factor < self.high_freq_factor:
            raise UserError(f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}")


@dataclass(frozen=True)
class ModelConfig:
    """One transformer of the Llama family. Widths in numbers of floats, `context` in tokens.

    Raises `UserError`, with the field's name, for a number or a token that no model can have.
    """

    family: str
    vocab: int
    width: int
    ff_width: int
    layers: int
    query_heads: int
    kv_heads: int
    head_width: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_head: bool = False
    qkv_bias: bool = False
    query_key_norm: Literal["none", "head", "full"] = "none"
    """`head`: RMSNorm over each head (Qwen3); `full`: over all heads at once (OLMo 2)."""
    post_norm: bool = False
    """Normalize the outputs of attention and MLP instead of their inputs (OLMo 2)."""
    seeding: Seeding = "successor"
    adapter_rank: int = 0
    """Inner width A of low-rank changes to the weights (Hu et al., arXiv 2106.09685); 0: there are none."""
    adapter_stream: AdapterStream = "query"
    """`query`: they change the query stream alone, and the content stream stays the source model; `both`: both streams."""
    start_token: int | None = None
    """`bos_token_id` of Hugging Face: given, never predicted. It stands where nothing else is before a token to predict."""
    starts: bool = True
    """Whether every document begins with it. An import takes that from the tokenizer."""
    end_tokens: tuple[int, ...] = ()
    """The first of them ends every document; each of them ends a text that is generated."""

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "ff_width", "layers", "query_heads", "kv_heads", "head_width", "context"):
            check_count(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta"):
            check_positive(name, getattr(self, name))
        if self.query_heads % self.kv_heads:
            raise UserError(f"query_heads {self.query_heads} cannot share kv_heads {self.kv_heads}; these must divide them")
        if self.head_width % 2:
            raise UserError(f"head_width is {self.head_width}; it must be even")
        if self.adapter_rank != 0:
            check_count("adapter_rank", self.adapter_rank)
        if self.start_token is not None:
            check_token("start_token", self.start_token, self.vocab)
        for token in self.end_tokens:
            check_token("end_tokens", token, self.vocab)

    @property
    def document_start(self) -> int | None:
        """The token that every document begins with."""
        return self.start_token if self.starts else None


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
    packing: Literal["concat", "best_fit"] = "concat"
    """`concat` cuts the stream of documents every L tokens; `best_fit` keeps documents whole where they fit, and pads."""
    overlap: int = 0
    """Tokens before a cut that are read again as context after it, in documents longer than L; with `best_fit`."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, of one source where only `path` is given."""
        return self.mixture or (SourceConfig(self.path),)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up. By default the learning rate of all weights, the weight decay and the steps of warm-up are those of
    arXiv 2601.13228; the learning rate of adapters, the schedule, the betas and the clipping are ours."""

    peak_lr: float | None = None
    """None: 2e-5 where all weights are trained, 2e-4 for adapters."""
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
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
    """Of matrices, not of norms, biases and the query seed. Adapters are matrices: it draws them towards the source model."""
    clip: float = 1.0
    """Largest global gradient norm."""


@dataclass(frozen=True)
class AdaptConfig:
    """Which parameters change: adapters of the query stream where there is a source, unless this says otherwise."""

    rank: int | None = None
    """Inner width of low-rank changes to the weights: these and the query seed are trained, and all weights stay. 0: there
    are none, and all weights are trained. None: the source's own adapters or, if it has none, new ones of rank 64; 0
    without a source."""
    stream: AdapterStream = "query"
    """Whose weights these change. With `query` the content stream stays the source model, and nothing is forgotten of reading
    from left to right."""
    frozen: tuple[str, ...] = ()
    """Of what is trained, parameters that stay all the same: by name (embedding, query_seed, gate, ...), or all `norms` or
    `embeddings`."""
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


@dataclass(frozen=True)
class TrainConfig:
    """How a step is computed, and what is written when."""

    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["auto", "dense", "chunked", "splash", "flash"] = "auto"
    """`auto` takes the one made for the platform: `splash` on TPU, `flash` on NVIDIA GPUs, else `chunked`."""
    remat: Literal["auto", "none", "dots", "offload", "full"] = "auto"
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
    stop_at: int | None = None
    """The step that ends the run for now; the learning rate goes on as if there were none."""
    save_every: int = 200
    keep: int = 2
    """Checkpoints kept besides the newest."""
    keep_hours: float | None = None
    """Beyond those, one checkpoint every so many hours stays for good."""
    keep_best: int = 0
    """Beyond those, so many with the lowest held-out NLL in the order `best_order` stay."""
    best_order: HeldOutOrder = "random_4"


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


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str
    """The run folder is `runs/NAME` unless `run` says otherwise."""
    source: str | None = None
    """A folder written by `a3jax import`, or what that reads; None to start from random weights of shape `model`."""
    model: ModelConfig | None = None
    """The shape of random weights; beside a source its own shape, from which `a3jax plan` works before it is there."""
    seeding: Seeding | None = None
    """How queries start; None keeps the source's (`successor` after import)."""
    run: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: tuple[Stage, ...] = direct(1000)
    ar_share: float = 0.0
    """Share of the windows of every stage that are read from left to right, one token at a time, besides those that the
    stage itself draws so: what keeps part of the autoregressive ability where all weights are trained. Adapters of the query
    stream learn nothing from them."""
    total_steps: int | None = None
    """Optimizer steps of the whole curriculum, where stages are fractions of it."""
    total_tokens: int | None = None
    """The same in tokens of full windows, padding included."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    @property
    def trains_adapters(self) -> bool:
        """Whether weights stay as they are, and adapters change."""
        if self.adapt.rank is not None:
            return self.adapt.rank > 0
        return self.source is not None or (self.model is not None and self.model.adapter_rank > 0)

    @property
    def peak_lr(self) -> float:
        """The optimizer's own, or the default of what is trained."""
        if self.optimizer.peak_lr is not None:
            return self.optimizer.peak_lr
        return 2e-4 if self.trains_adapters else 2e-5

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole curriculum."""
        return sum(stage.length for stage in settled(self).curriculum)

    @property
    def batches(self) -> tuple[int, ...]:
        """Windows per optimizer step: of the experiment, and of stages that have a batch of their own."""
        return tuple(dict.fromkeys([self.data.batch, *(stage.batch for stage in self.curriculum if stage.batch is not None)]))

    @property
    def end(self) -> int:
        """The step after which training ends: the last of the curriculum, or `train.stop_at` before it."""
        return min(self.steps, self.train.stop_at or self.steps)

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its checkpoints, metrics and configuration."""
        return Path(self.run or f"runs/{self.name}")

    def at(self, stage: Stage) -> "Config":
        """The experiment as one of its stages has it: with the stage's own batch."""
        batch = self.data.batch if stage.batch is None else stage.batch
        return dataclasses.replace(self, data=dataclasses.replace(self.data, batch=batch))


def settled(config: Config) -> Config:
    """The experiment with its curriculum (`a3jax.curriculum.schedule.settle`) and learning rate settled, as all that runs it wants it.

    Raises `UserError` for a curriculum that cannot be.
    """
    stages = settle(
        config.curriculum,
        config.data.batch,
        config.data.length,
        config.total_steps,
        config.total_tokens,
        config.ar_share,
    )
    optimizer = dataclasses.replace(config.optimizer, peak_lr=config.peak_lr)
    return dataclasses.replace(
        config, curriculum=stages, ar_share=0.0, total_steps=None, total_tokens=None, optimizer=optimizer
    )
