"""Adapters on the Hugging Face Hub: fetched by name and pushed with a card, in the conventions of peft."""

from __future__ import annotations

import re
from pathlib import Path

from sharedllm.errors import UsageError, WorkError

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def is_hub_name(name: str | Path) -> bool:
    """Whether an adapter's name is no folder here, and can be one on the Hub: `user/name` or `user/name@revision`."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not Path(name).exists()


def named_for_others(model: str) -> str:
    """A model's name without the folders of this machine: a repository's as it is, of a path the last name alone."""
    return model if is_repository(model) else Path(model).name


def is_repository(model: str) -> bool:
    """Whether a model's name is one of the Hub; a path here would say nothing to others, or name a stranger's model."""
    return is_hub_name(model) and "@" not in model


def fetched(name: str, files: tuple[str, ...]) -> Path:
    """The folder that holds an adapter of the Hub: those of its `files` alone, downloaded once.

    Raises:
        UsageError: there is neither such a folder nor such a repository, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # what is raised differs by the HTTP library that the Hub's client uses
        raise UsageError(
            f"{name!r} is neither a folder nor an adapter that the Hugging Face Hub gives ({_first_line(error)}); "
            "give a folder, user/name, or user/name@revision."
        ) from error


def pushed(folder: Path, repository: str, message: str, private: bool | None, token: str | None) -> str:
    """Upload a folder to a repository of the Hub, which is made where it is not there; returns the commit's address.

    Raises:
        WorkError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # what is raised differs by the HTTP library that the Hub's client uses
        raise WorkError(
            f"the adapter was not pushed to {repository} ({_first_line(error)}); check the name, the connection and "
            "`hf auth login`."
        ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
