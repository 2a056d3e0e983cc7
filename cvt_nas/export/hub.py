"""Uploads an exported folder to the Hugging Face Hub."""

from pathlib import Path

from cvt_nas.errors import ExportError, first_line

# Files that the formats write. Other files of the folder are not uploaded.
FILES = (
    "README.md", "arch.json", "config.json", "int8.json", "model.bin", "model.onnx", "model.onnx.data", "model.pt2",
    "model.safetensors", "model.xml", "preprocessing.json", "preprocessor_config.json",
)  # fmt: skip
_LOGIN = (
    "sign in by `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"
)


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads what `export` wrote to `folder`, in one commit, with the token from `hf auth login` or `HF_TOKEN`.

    Args:
        repo_id: USER/NAME. The repository is created if it does not exist. Files with the same names are replaced, and
            other files stay.
        private: Whether only the owner may see the repository. If False, the owner's default decides; it is public for
            most.

    Returns:
        URL of the repository.

    Raises:
        ExportError: There is no export in `folder`, `repo_id` is not a valid name, the Hub refuses or cannot be
            reached, or `private` is set but the repository exists and is public.
    """
    check_repo_id(repo_id)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    if not (folder / "README.md").is_file() or not any((folder / name).is_file() for name in FILES if "model." in name):
        raise ExportError(f"{folder}: holds no exported model")
    api = HfApi(token=True)
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:  # `create_repo` ignores `private` for existing ones
            raise ExportError(
                f"--push {repo_id}: is public already; name another, or make it private at {url}/settings"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload a network of cvt-nas",
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # those of the client and its two transports
        raise ExportError(f"--push {repo_id}: {_why(error, api.endpoint)}") from error
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Raises ExportError if `repo_id` is not USER/NAME, or huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise ExportError("--push needs huggingface_hub: pip install 'cvt-nas[hf]'") from error
    try:
        validate_repo_id(repo_id if "/" in repo_id else "")
    except HFValidationError as error:
        raise ExportError(
            f"--push {repo_id}: must be USER/NAME, of letters, digits, '-', '_' and '.', without '--' and '..'"
        ) from error


def _why(error: Exception, endpoint: str) -> str:
    """One line that tells the cause of an error and, if known, what to do about it."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        LocalTokenNotFoundError,
    )

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # "Error while uploading FILE"
        return _why(error.__cause__, endpoint)
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for {endpoint}: {_LOGIN}"
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    said = message.splitlines()[0] if message else first_line(error)
    if isinstance(error, HfHubHTTPError):
        refused = f"{endpoint} answers {error.response.status_code}: {said}"
        return f"{refused}; {_LOGIN}" if error.response.status_code in (401, 403) else refused
    return f"{endpoint} cannot be reached: {said}" if isinstance(error, HTTPError | ConnectionError) else said
