"""A run's steps in a bucket where Orbax cannot write: it saves on this machine, and whole steps are sent there whole.

Of a step that is there, `a3jax.parts.json` is written last and removed first. What lies on this machine is kept for the next
call, as far as it is what is there.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from a3jax.errors import UserError
from a3jax.files.folders import remove
from a3jax.files.parts import PARTS, check_whole, send_parts
from a3jax.files.places import local_folder, scratch, sizes, takes_orbax

_STEPS = ("[0-9]*", "damaged/*")


class Away:
    """`away.folder` is where Orbax saves, `away.place` itself where it can."""

    def __init__(self, place: Path):
        """Raises `UserError` for a run of several processes where each would have a folder of its own."""
        self.place, self._here = place, takes_orbax(place)
        self._whole: set[str] = set()
        self.folder = place if self._here else scratch(place)
        if not self._here and jax.process_count() > 1:
            what = f"{place.parent} can be trained by one process alone"
            raise UserError(f"{what}; give a --run on gs:// or on a file system that all share")

    def fetch(self) -> None:
        """Have the whole steps that are there on this machine, and no others. Raises `UserError` for a damaged one."""
        if self._here:
            return
        there = self._there()
        for name in self._local() - there:
            remove(self.folder / name)
        for name in there:
            if not (self.folder / name / PARTS).is_file() or not _same(self.place / name, self.folder / name):
                remove(self.folder / name)
                check_whole(self.place / name)
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                local_folder(self.place / name).rename(self.folder / name)
        self._whole = there

    def send(self, manager: ocp.CheckpointManager) -> None:
        """Have there what is on this machine once it is saved: new steps whole, and none that is gone."""
        if self._here:
            return
        manager.wait_until_finished()
        there = self._there()
        for name in sorted(self._local() - there):
            manifest = send_parts(self.folder / name, self.place / name)
            (self.place / name / PARTS).write_bytes(manifest)
            (self.folder / name / PARTS).write_bytes(manifest)
            self._whole.add(name)
        for name in there - self._local():
            self._whole.discard(name)
            (self.place / name / PARTS).unlink(missing_ok=True)
            remove(self.place / name)

    def newest(self, manager: ocp.CheckpointManager) -> int | None:
        """The last step that is there whole, as far as this process knows; None if there is none."""
        if self._here:
            return manager.latest_step()
        return max((int(name) for name in self._whole if name.isdecimal()), default=None)

    def _local(self) -> set[str]:
        found = {path for pattern in _STEPS for path in self.folder.glob(pattern)}
        return {str(path.relative_to(self.folder)) for path in found if "tmp" not in path.name}

    def _there(self) -> set[str]:
        return {name.removesuffix(f"/{PARTS}") for name in sizes(self.place) if name.endswith(f"/{PARTS}")}


def _same(there: Path, here: Path) -> bool:
    return (there / PARTS).read_bytes() == (here / PARTS).read_bytes()
