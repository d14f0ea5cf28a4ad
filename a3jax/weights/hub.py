"""Models by their name on the Hugging Face hub, `owner/model` or `owner/model@revision`, downloaded into its usual cache."""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import errors

from a3jax.data.tokenizer_files import FILES
from a3jax.errors import UserError, first_line
from a3jax.weights import a3_folder, generation, sha256

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model*.bin",)


class HubModel(NamedTuple):
    """A repository of the hub at one revision."""

    repository: str
    revision: str | None
    """A branch, a tag or a commit; the main branch if None."""

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> HubModel | None:
    """The model that a name stands for, or None if it cannot be one."""
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", name)
    return HubModel(match[1], match[2]) if match else None


def download(model: HubModel) -> Path:
    """The folder of the downloaded model; what the cache holds already is not loaded again, nor without a network.

    Raises `UserError` if the hub does not have it, does not give it, or cannot be reached.
    """
    try:
        files = huggingface_hub.list_repo_files(model.repository, revision=model.revision)
        weights = _WEIGHTS if any(file.endswith(".safetensors") for file in files) else _OLD_WEIGHTS
        return _snapshot(model, weights)
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{model.repository}"
        raise UserError(f"{model} asks for consent: accept it at {page}, then log in with: hf auth login") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise UserError(f"{model} is neither a file or folder here nor a model of the Hugging Face hub") from None
    except Exception as error:  # no network, in the words of whichever library met it
        return _cached(model, first_line(error))


def _snapshot(model: HubModel, weights: tuple[str, ...], offline: bool = False) -> Path:
    patterns = ["config.json", generation.FILE, a3_folder.RECORD, sha256.SUMS, *FILES, *weights]
    return Path(
        huggingface_hub.snapshot_download(
            model.repository, revision=model.revision, allow_patterns=patterns, local_files_only=offline
        )
    )


def _cached(model: HubModel, reason: str) -> Path:
    """What the cache holds, if it is whole."""
    for weights in (_WEIGHTS, _OLD_WEIGHTS):
        with contextlib.suppress(Exception):  # not there, or not whole
            folder = _snapshot(model, weights, offline=True)
            if any(True for pattern in weights for _ in folder.glob(pattern)):
                return folder
    raise UserError(f"{model} is no file or folder here, and the Hugging Face hub cannot be reached: {reason}")
