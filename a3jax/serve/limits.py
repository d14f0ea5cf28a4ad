"""What one service lets its clients ask for."""

import dataclasses
from dataclasses import dataclass

from a3jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on requests, and on what is filled at once. Raises `UserError` for one that lets nothing through."""

    max_batch: int = 8
    """Texts that are filled together, each in a row of its own."""
    max_queue: int = 64
    """Texts that may wait; further requests are told to come again. One request may not ask for more."""
    max_tokens_per_request: int = 8192
    """Tokens to be filled in by one request, all its texts together."""
    max_tokens_per_pass: int = 64
    """Tokens that one text may have predicted at once, which is what a pass needs memory for."""
    max_body_bytes: int = 2**20
    """Of one request."""
    max_connections: int = 256
    """Open at once. Where there are more, the one that has kept the service waiting longest is closed."""
    max_client_seconds: float = 10.0
    """A client may take so long over a request's headers, over its body, and over taking some more of an answer."""
    max_stop_seconds: float = 5.0
    """When the service is told to stop, the texts on their way may take so long."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(Limits):
            least = 0 if field.name == "max_stop_seconds" else 1
            if not least <= getattr(self, field.name) < 2**31:
                option = field.name.replace("_", "-")
                raise UserError(f"--{option} is {getattr(self, field.name)}; it must be at least {least} and below {2**31}")
