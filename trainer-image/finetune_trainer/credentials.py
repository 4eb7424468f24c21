"""Keys from mounted Secrets: one folder per Secret, one file per key. Nothing here is ever logged."""

from pathlib import Path

from finetune_api.names import S3_ACCESS_KEY, S3_SECRET_KEY, S3_SESSION_TOKEN, FailureClass
from finetune_api.run import SecretFolder

from finetune_trainer.errors import RunError


def read_keys(folder: SecretFolder) -> tuple[str, str, str | None]:
    """Access key, secret key and session token from mounted files. Raises AccessDenied naming Secret and key."""
    token = read_secret(folder, S3_SESSION_TOKEN)
    return required_secret(folder, S3_ACCESS_KEY), required_secret(folder, S3_SECRET_KEY), token


def required_secret(folder: SecretFolder, key: str) -> str:
    """One key of a mounted Secret. Raises RunError (AccessDenied) where it is not there, empty, or cannot be one."""
    value = read_secret(folder, key)
    if value is not None and not value.isascii():
        raise _invalid(folder, key, "it holds a character that is not ASCII")
    if value is not None:
        return value
    if not _has_keys(Path(folder.directory)):
        raise RunError(
            FailureClass.ACCESS_DENIED,
            "SecretMissing",
            f"{folder.source} does not exist or is empty: key {key} is needed",
            f"Create {folder.source} with key {key}, then create the Finetune again.",
        )
    raise RunError(
        FailureClass.ACCESS_DENIED,
        "SecretKeyMissing",
        f"{folder.source} has no key {key}",
        f"Add key {key} to {folder.source}, then create the Finetune again.",
    )


def _has_keys(directory: Path) -> bool:
    """Whether a Secret was mounted that holds anything: the kubelet makes `..data` also where there is none."""
    return directory.is_dir() and any(not entry.name.startswith("..") for entry in directory.iterdir())


def read_secret(folder: SecretFolder, key: str) -> str | None:
    """One key of a mounted Secret without blanks around it; None where it is not there or empty.

    Raises RunError (AccessDenied) for what is not one line of text: HTTP libraries would quote it in their errors.
    """
    try:
        value = (Path(folder.directory) / key).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise _invalid(folder, key, "it is not UTF-8") from error
    except OSError as error:
        raise _invalid(folder, key, str(error.strerror)) from error
    if not value.isprintable():
        raise _invalid(folder, key, "it has several lines, or holds control characters")
    return value or None


def _invalid(folder: SecretFolder, key: str, why: str) -> RunError:
    message = f"key {key} of {folder.source} cannot be used: {why}"
    return RunError(FailureClass.ACCESS_DENIED, "SecretInvalid", message, f"Write {key} as one line, as it was given.")
