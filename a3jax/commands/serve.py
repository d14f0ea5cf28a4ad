"""a3jax serve."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from a3jax.commands.commandline import PLAIN, Json, Loads, Text
from a3jax.devices.joined import joined
from a3jax.errors import UserError
from a3jax.serve.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Serve(Limits):
    """Complete and fill texts over HTTP, in the shape of OpenAI's completions.

    a3jax serve demo/run --port 8000
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    host: str = "127.0.0.1"
    """The address to listen at; this machine alone if not given. Any other asks for a key."""
    port: int = 8000
    """0 takes any that is free."""
    api_key: Path | None = None
    """A file of keys, one a line, of which requests must bear one; else the variable A3JAX_API_KEY, if it is set."""
    open: bool = False
    """Listen beyond this machine without a key."""
    trusted_proxy: Text = None
    """A proxy whose word for a client's address is taken, by its own address or network; nobody's if not given."""
    loading: Loads = PLAIN
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.serve.access import Access, read_keys
        from a3jax.serve.server import serve

        if not self.host:
            raise UserError("--host is empty; give an address, such as 127.0.0.1 for this machine alone")
        access = Access(read_keys(self.api_key), self.open, self.trusted_proxy)
        limits = Limits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})
        dtype, step = self.loading.dtype, self.loading.step
        with joined(self.loading.devices) as mesh:
            return serve(self.checkpoint, self.host, self.port, dtype, step, limits, access, mesh)
