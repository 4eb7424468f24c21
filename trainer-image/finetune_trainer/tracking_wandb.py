"""Weights & Biases: a run on its server where there is a key, else an offline run for `wandb sync`.

Only what we log is sent: nothing of the machine, the console, the code or git.
"""

from pathlib import Path

import wandb
from finetune_api.names import WANDB_KEY
from finetune_api.output import Wandb
from finetune_api.run import RunSpec

from finetune_trainer.credentials import read_secret
from finetune_trainer.tracking import Numbers, settings_of


class WandbTracker:
    """One run of the project."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        asked, identity = spec.training.tracking.wandb or Wandb(), spec.identity
        key = read_secret(spec.tracking_credentials, WANDB_KEY) if spec.tracking_credentials else None
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            api_key=key,
            **({"base_url": asked.base_url} if asked.base_url else {}),
        )
        self._run = wandb.init(
            mode="online" if key else "offline",
            dir=str(folder),
            entity=asked.entity or None,
            project=asked.project or identity.namespace,
            name=f"{identity.name}-{identity.uid[:8]}-{spec.attempt}",
            config=settings_of(spec),
            settings=settings,
        )

    def log(self, step: int, numbers: Numbers) -> None:
        """One row."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Send or write what is left; the library's own process ends, so that its file is whole."""
        self._run.finish()
        wandb.teardown()
