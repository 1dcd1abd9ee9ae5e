"""A run on Weights & Biases, beside TensorBoard."""

import importlib.util
import io
import logging
import math
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from robolearn.errors import UserError, one_line
from robolearn.system.files import write_text

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

INSTALL = "pip install 'wandb>=0.19'"


class WandbLogger:
    """Sends a run's scalars, videos and configuration to Weights & Biases, and at its end the model.

    A resumed run is resumed there, too: its id lies in ``wandb/run_id`` of the run's folder.
    Curves are drawn over ``step``. In the mode ``offline`` everything stays in ``wandb/`` of the run's folder, until
    ``wandb sync`` sends it.

    Args:
        folder: The run's folder.
        project: Where the run belongs.
        entity: The user or team that the project belongs to; the account's own if None.
        notes: What the run is about.
        name: What the run is called.
        mode: ``offline``, ``online``, or ``disabled``, which does nothing.
        run_id: Go on with this run of W&B; None: a new one, and after an interruption the same.
        disable_artifact: Leave the model out.

    Raises:
        UserError: The package is not installed.
    """

    def __init__(
        self,
        folder: Path,
        project: str = "robolearn",
        entity: str | None = None,
        notes: str | None = None,
        name: str | None = None,
        mode: Mode = "offline",
        run_id: str | None = None,
        disable_artifact: bool = False,
    ) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError(f"logger=wandb needs the package wandb, which is not installed: {INSTALL}.", key="logger")
        if not project:
            raise UserError(
                "logger.wandb.project is empty: name one, or choose logger=tensorboard.", key="logger.wandb.project"
            )
        self.folder, self.project, self.entity, self.notes, self.name = folder, project, entity, notes, name
        self.mode: Mode = mode
        self.run_id, self.disable_artifact = run_id, disable_artifact
        self._run: Any = None

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send one step's scalars; what is not finite is left out."""
        self.run.log({"step": step, **{name: value for name, value in scalars.items() if math.isfinite(value)}})

    def gif(self, step: int, name: str, data: bytes) -> None:
        """Show an animation."""
        import wandb

        self.run.log({"step": step, name: wandb.Video(io.BytesIO(data), format="gif")})

    def model(self, folder: Path) -> None:
        """Keep the files of a checkpoint that `robolearn-eval` needs, unless artifacts are disabled."""
        if self.disable_artifact or self.mode == "disabled":
            return
        import wandb

        artifact = wandb.Artifact(f"model-{self.run.id}", type="model")
        for file in ("model.safetensors", "config.yaml", "spec.json", "checksums.json"):
            # Immutable, so that no copy of the weights is made on this machine.
            artifact.add_file(str(folder.resolve() / file), policy="immutable")
        self.run.log_artifact(artifact)

    def close(self) -> None:
        """Write what is still in memory; a run that ends with an error is marked so."""
        if self._run is not None:
            self._run.finish(exit_code=1 if isinstance(sys.exception(), Exception) else 0)
            self._run = None

    @property
    def run(self) -> Any:
        """The run of the package wandb, opened at first use.

        Raises:
            UserError: W&B refuses it.
        """
        if self._run is None:
            self._run = self._open()
        return self._run

    def _open(self) -> Any:
        import wandb
        from wandb.errors import Error

        record = self.folder / "wandb" / "run_id"
        run_id = self.run_id or (record.read_text().strip() if record.is_file() else secrets.token_hex(4))
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, run_id)
        config = self.folder / "config.yaml"
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                notes=self.notes,
                name=self.name,
                mode=self.mode,
                id=run_id,
                resume="allow",
                dir=self.folder,
                config=yaml.safe_load(config.read_text()) if config.is_file() else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except Error as error:
            raise UserError(
                f"logger.wandb.mode={self.mode}: Weights & Biases cannot be reached or refuses the run "
                f"({one_line(error)})",
                key="logger.wandb.mode",
                fix="fix that, or set logger.wandb.mode=offline",
            ) from error
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        where = f"wandb sync {run.settings.sync_dir} sends it" if self.mode == "offline" else run.url
        log.info("Weights & Biases, run %s of %s: %s", run_id, self.project, where)
        return run
