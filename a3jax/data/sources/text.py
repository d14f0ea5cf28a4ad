"""Text files, one document each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from a3jax.data.sources.files import UNREADABLE, FileSource, open_bytes
from a3jax.data.sources.interface import Document, Fault, Part, not_utf8
from a3jax.errors import first_line


@dataclass(frozen=True)
class Text(FileSource):
    """A file that is one document. One that is not UTF-8 is no mistake: folders of texts hold pictures too."""

    def parts(self) -> Sequence[Part]:  # noqa: D102, the interface says it
        return [Part(0, 1, self.file.bytes)]

    def documents(self, part: Part) -> Iterator[Document]:  # noqa: D102, the interface says it
        try:
            with open_bytes(self.file) as file:
                content = file.read()
        except UNREADABLE as error:
            yield Fault("damaged file", f"{self.name} cannot be read: {first_line(error)}")
            return
        try:
            yield content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            yield not_utf8(self.name, error, expected=True)
