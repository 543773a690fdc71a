"""Uploads of an export to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from shadowpeft.errors import CheckpointError, ConfigError


def logged_in(repository: str) -> HfApi:
    """Return a client that may upload; called before any work is done for an upload.

    Raises:
        ConfigError: the repository has an impossible name, nobody is logged in, or the hub refuses or does
            not answer.
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
            f"--push: the Hugging Face hub refuses the connection ({' '.join(str(error).split())})"
        ) from error
    return client


def upload(client: HfApi, repository: str, output: Path, card: str) -> str:
    """Upload a folder, or a file with its card, and return the address of the repository.

    Args:
        client: as `logged_in` returns it.
        repository: name on the hub; made if need be.
        output: the folder, which holds its card, or the file.
        card: content of the file's `README.md`.

    Raises:
        CheckpointError: it could not be uploaded; the local files stay.
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
            f"{output} is written and could not be uploaded ({why}); try again with hf upload {repository} "
            f"{output}"
        ) from error
    return str(address)
