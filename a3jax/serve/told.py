"""A service on several processes: process 0 answers clients and tells the others all that it does with texts, and they do it
too."""

from typing import Any

from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.devices.agreement import from_runtime
from a3jax.devices.board import telling
from a3jax.devices.interrupt import stop_requests
from a3jax.devices.processes import is_alone
from a3jax.files.strict import build, plain
from a3jax.generate.together import Together
from a3jax.weights.loading import Model


class Told(Together):
    """Texts on their way in process 0; where it is not alone, all others have them too."""

    def join(self, number: int, template: Template, decoding: Decoding) -> None:  # noqa: D102
        _tell(["join", number, plain(template), plain(decoding)])
        super().join(number, template, decoding)

    def leave(self, number: int) -> None:  # noqa: D102
        _tell(["leave", number])
        super().leave(number)

    def advance(self) -> None:  # noqa: D102
        _tell(["advance"])
        super().advance()


def tell_end() -> None:
    """In process 0, when there will be no text any more."""
    _tell(None)


def follow(model: Model, most: int) -> int:
    """In the others: do what is told, to the end; how many passes. Until then signals are left to process 0."""
    together = Together(model, most)
    with stop_requests():
        while (told := telling().hear()) is not None:
            match told:
                case ["join", number, template, decoding]:
                    together.join(number, build(Template, template, "told"), build(Decoding, decoding, "told"))
                case ["leave", number]:
                    together.leave(number)
                case ["advance"]:
                    together.advance()
            for new in together.news().values():
                if isinstance(new, Exception) and from_runtime(new):
                    raise new  # anything else process 0 has met too, and says it to its client
    return together.passes


def _tell(what: Any) -> None:
    if not is_alone():
        telling().tell(what)
