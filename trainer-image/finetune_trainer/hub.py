"""Models and datasets of the Hugging Face hub, or of any server that speaks its protocol (`HF_ENDPOINT`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from finetune_api.names import HF_TOKEN_KEY, FailureClass
from finetune_api.run import SecretFolder
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_trainer.credentials import required_secret
from finetune_trainer.errors import RunError

TRIES = 3
"""Downloads of one file in all; an interrupted one goes on where it stopped."""


@dataclass(frozen=True)
class HubKind:
    """What a repository holds, and the fields that name it."""

    type: str
    """The hub's own word."""
    field: str
    failure_class: FailureClass
    """Of one that is not there."""
    not_found: str
    """The reason of the same."""


MODEL = HubKind("model", "model", FailureClass.INVALID_CONFIG, "ModelNotFound")
DATASET = HubKind("dataset", "datasets[]", FailureClass.INVALID_DATA, "DatasetNotFound")


class HubRepository:
    """One repository at one commit. Opening it resolves the revision; raises RunError for whatever is in the way."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        credentials: SecretFolder | None,
        endpoint: str | None = None,
        kind: HubKind = MODEL,
    ) -> None:
        disable_progress_bars()
        self.name = name
        self.kind = kind
        self.uri = f"hf://{name}"
        self.endpoint = endpoint or constants.ENDPOINT
        self.credentials = credentials
        # False, not None: no token that lies about on the machine.
        self.token: str | bool = required_secret(credentials, HF_TOKEN_KEY) if credentials else False
        wanted = revision or "main"
        with self._errors(wanted):
            api = HfApi(endpoint=self.endpoint, token=self.token)
            look = api.dataset_info if kind is DATASET else api.model_info
            info = look(name, revision=wanted)
        if not info.sha:
            raise self._unavailable(f"it names no commit for {self.uri}")
        self.revision = info.sha
        self.files = sorted(sibling.rfilename for sibling in info.siblings or [])

    def names(self) -> list[str]:
        """All files of the commit, folders included in their names."""
        return self.files

    def download(self, name: str, folder: Path) -> None:
        """Write one file to `folder`."""
        for attempt in range(1, TRIES + 1):
            try:
                with self._errors(self.revision):
                    hf_hub_download(
                        self.name,
                        name,
                        repo_type=self.kind.type,
                        revision=self.revision,
                        local_dir=folder,
                        token=self.token,
                        endpoint=self.endpoint,
                    )
                return
            except RunError as error:
                if error.failure_class is not FailureClass.INFRASTRUCTURE or attempt == TRIES:
                    raise

    @contextmanager
    def _errors(self, revision: str) -> Iterator[None]:
        """What the hub's library raises, in our words."""
        try:
            yield
        except GatedRepoError as error:
            raise self._denied("is gated, and access to it was not granted") from error
        except RepositoryNotFoundError as error:
            raise self._not_found() from error
        except RevisionNotFoundError as error:
            message = f"{self.uri} has no revision {revision}"
            remedy = f"Correct {self.kind.field}.revision."
            raise RunError(FailureClass.INVALID_CONFIG, "RevisionNotFound", message, remedy) from error
        except HFValidationError as error:
            raise RunError(self.kind.failure_class, self.kind.not_found, f"{self.uri}: {error}") from error
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise self._denied(f"answers {error.response.status_code}") from error
            raise self._unavailable(str(error)) from error
        except (httpx2.HTTPError, OSError, EntryNotFoundError) as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                raise  # The disk's, not the network's.
            raise self._unavailable(str(error)) from error

    def _not_found(self) -> RunError:
        correct = f"Correct {self.kind.field}.uri"
        if self.credentials is None:
            remedy = f"{correct}; if it is private, set model.credentialsSecretRef to a Secret with HF_TOKEN."
        else:
            remedy = f"{correct}, or put a token that may read it into {self.credentials.source}."
        message = f"{self.kind.type} {self.uri} is not on {self.endpoint}, or is private"
        return RunError(self.kind.failure_class, self.kind.not_found, message, remedy)

    def _denied(self, why: str) -> RunError:
        who = self.credentials.source if self.credentials else "a Secret named in model.credentialsSecretRef"
        remedy = f"Accept the {self.kind.type}'s terms on {self.endpoint}, and put a token of that account into {who}."
        return RunError(FailureClass.ACCESS_DENIED, "AccessDenied", f"{self.uri} {why}", remedy)

    def _unavailable(self, why: str) -> RunError:
        message = f"the hub at {self.endpoint} does not answer as it should: {why}"
        return RunError(FailureClass.INFRASTRUCTURE, "HubUnavailable", message)
