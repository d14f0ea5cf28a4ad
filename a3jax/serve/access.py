"""Who may use a service: those on this machine, and beyond it those who know a key, unless everyone is to."""

import hmac
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from a3jax.errors import UserError
from a3jax.files.places import place

VARIABLE = "A3JAX_API_KEY"
"""The environment's variable that may hold a key."""
LEAST = 8
"""Characters of a key; a shorter one is guessed."""


@dataclass(frozen=True)
class Access:
    """Whom a service answers."""

    keys: tuple[str, ...] = ()
    """A request must bear one of them, if there are any."""
    open: bool = False
    """Whether a service may listen beyond this machine without a key."""
    trusted_proxy: str | None = None
    """The address or network of a proxy whose word for a client's address is taken."""

    def __post_init__(self) -> None:
        """Raises `UserError` for a proxy that is none."""
        try:
            ipaddress.ip_network(self.trusted_proxy or "127.0.0.1")
        except ValueError as error:
            fix = "give the proxy's address, or a network such as 10.0.0.0/8"
            raise UserError(f"--trusted-proxy: {error}; {fix}") from None

    def check_address(self, address: str) -> None:
        """Raise `UserError` where a service at this address would answer everyone who reaches it, unasked."""
        if not (self.keys or self.open or is_loopback(address)):
            raise UserError(
                f"everyone who reaches {address} could use this service; give --api-key FILE, set {VARIABLE}, or say --open"
            )

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request bears a key: `Authorization: Bearer KEY` or `X-Api-Key: KEY`. The time it takes tells nothing."""
        if not self.keys:
            return True
        borne = []
        for name, value in headers:
            kind, _, key = value.partition(b" ")
            if name == b"authorization" and kind.lower() == b"bearer":
                borne.append(key.strip())
            elif name == b"x-api-key":
                borne.append(value.strip())
        return any([hmac.compare_digest(key.encode(), one) for key in self.keys for one in borne])  # noqa: C419, all are compared


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line, else of the environment. Raises `UserError` for a file without any, and short keys."""
    if file is None:
        where, lines = VARIABLE, os.environ.get(VARIABLE, "").splitlines()
    else:
        where = f"--api-key {file}"
        try:
            lines = place(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise UserError(f"{where}: {reason}; give a file with one key a line") from None
        if not any(line.strip() for line in lines):
            raise UserError(f"{where} holds no key; write one a line")
    keys = tuple(line.strip() for line in lines if line.strip())
    if any(len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UserError(f"{where} holds a key of fewer than {LEAST} letters, or with others than ASCII's; take a longer one")
    return keys
