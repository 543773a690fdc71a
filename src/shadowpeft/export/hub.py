"""Uploading an export to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from shadowpeft.errors import CheckpointError, ConfigError


def logged_in(repository: str) -> HfApi:
    """Return a client that may upload, before any work is done for it.

    Raises:
        ConfigError: the repository's name cannot be one, nobody is logged in, or the hub does not answer.
    """
    client = HfApi()
    try:
        validate_repo_id(repository)
        client.whoami()
    except HFValidationError as error:
        raise ConfigError(
            f"--push needs the name of a repository such as user/name, got {repository!r}"
        ) from error
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            "--push needs a token of the Hugging Face hub: run hf auth login, or set HF_TOKEN"
        ) from error
    except (HTTPError, OSError) as error:
        raise ConfigError(
            f"--push: the Hugging Face hub does not let in ({' '.join(str(error).split())})"
        ) from error
    return client


def upload(client: HfApi, repository: str, output: Path, card: str) -> str:
    """Upload a folder, or a file with its card, and return its address.

    Raises:
        CheckpointError: it could not be uploaded; what was written here stays.
    """
    try:
        address = client.create_repo(repository, exist_ok=True)
        if output.is_dir():
            client.upload_folder(repo_id=repository, folder_path=output)
        else:
            client.upload_file(repo_id=repository, path_or_fileobj=output, path_in_repo=output.name)
            client.upload_file(repo_id=repository, path_or_fileobj=card.encode(), path_in_repo="README.md")
    except (HTTPError, OSError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{output} is written and could not be uploaded ({why}); try again with hf upload {repository} {output}"
        ) from error
    return str(address)
