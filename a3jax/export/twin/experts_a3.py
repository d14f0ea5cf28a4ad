"""Feed-forwards in PyTorch: the gate that all have, and experts: a router sends every row to some, and none is dropped."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration_a3 import A3Config

MODULE = {"mixtral": "block_sparse_moe"}
"""What a family calls the feed-forward of a layer, if not `mlp`."""
GATE_UP_DOWN = {"mixtral": ("w1", "w3", "w2")}
"""What it calls the three weights of an expert, if not as below."""
ROUTER = {"gpt_oss": "router"}
"""What it calls the router, if not `gate`."""


def gated(config: A3Config, gate: Tensor, up: Tensor) -> Tensor:
    """What goes down, elementwise: what goes up, as far as its gate lets it through."""
    if config.gate_limit is not None:
        gate, up = gate.clamp(max=config.gate_limit), up.clamp(-config.gate_limit, config.gate_limit) + 1
    if config.activation == "gelu_sigmoid":
        return gate * torch.sigmoid(1.702 * gate) * up
    return (functional.gelu(gate, approximate="tanh") if config.activation == "gelu_tanh" else functional.silu(gate)) * up


class A3Expert(nn.Module):
    """One gated MLP."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.config = config
        self.names = GATE_UP_DOWN.get(config.a3_family, ("gate_proj", "up_proj", "down_proj"))
        width, inner = config.hidden_size, config.intermediate_size
        for name, inputs, outputs in zip(self.names, (width, width, inner), (inner, inner, width)):
            self.add_module(name, nn.Linear(inputs, outputs, bias=config.expert_biases))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape, ... x D."""
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(gated(self.config, gate(x), up(x)))


class A3Experts(nn.Module):
    """The most probable experts of each row, by what the router says in float32."""

    def __init__(self, config: A3Config):
        super().__init__()
        self.active, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.name = ROUTER.get(config.a3_family, "gate")
        self.add_module(self.name, nn.Linear(config.hidden_size, config.num_experts, bias=config.expert_biases))
        self.experts = nn.ModuleList(A3Expert(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """Keeps the shape, B x R x D. Experts have no adapters, so all rows are treated alike."""
        router = getattr(self, self.name)
        bias = None if router.bias is None else router.bias.float()
        probability = functional.linear(x.float(), router.weight.float(), bias).softmax(-1)
        share, choice = probability.topk(self.active, -1)
        if self.normalized:
            share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            batch, row, place = torch.where(choice == number)
            if len(row):
                out[batch, row] += expert(x[batch, row]) * share[batch, row, place, None].to(x.dtype)
        return out
