"""The training loop: batches in, checkpoints and curves out; killed at any step, it goes on where it was."""

import contextlib
import dataclasses
import json
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from wam_jax import console
from wam_jax.sharding import batch_sharding
from wam_jax.training.checkpoint import Checkpoints
from wam_jax.training.metrics import MetricsLog
from wam_jax.training.state import TrainState
from wam_jax.training.step import StepFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Attributes:

    steps: in all, over all resumes.
    save_every, log_every: steps between checkpoints and between logged metrics.
    evaluate_every: steps between evaluations; 0: none.
    log_batches: log every step, with a checksum of its batch (to prove that a resume repeats the data order).
    """

    steps: int
    save_every: int = 500
    log_every: int = 20
    evaluate_every: int = 0
    log_batches: bool = False


def fit(
    state: TrainState,
    step_fn: StepFn,
    frozen: Any,
    data: grain.DatasetIterator,
    mesh: Mesh,
    directory: Path,
    config: LoopConfig,
    meta: dict[str, Any],
    description: str = "training",
    tokenizer: Any = None,
    score: Callable[[TrainState], float] | None = None,
) -> TrainState:
    """Trains to ``config.steps``, resuming from the newest checkpoint in ``directory`` if there is one.

    Args:
      state: the initial state, laid out on the mesh; replaced when resuming.
      step_fn: ``make_step``'s.
      frozen: passed to the step.
      data: endless batches; its position is saved and restored.
      mesh: where batches go.
      directory: for ``checkpoints/`` and ``metrics.jsonl``.
      config: lengths and intervals.
      meta: the JSON part of the checkpoints.
      description: beside the progress bar.
      tokenizer: saved beside the state, where there is one.
      score: of a state, the higher the better (closed-loop success); where the best one was is kept in ``best/``.

    Raises:
      FloatingPointError: where a loss or gradient that is logged, or about to be saved, is not finite; names the step.
      CheckpointError: if the directory holds a run of another configuration.
    """
    # Closed, it has waited for what is being written, whatever ends the training.
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(state, data, meta)
            console.log(f"{description}: resuming from step {int(state.step)}")
        start = int(state.step)
        log = MetricsLog(directory / "metrics.jsonl", start)
        best = Best(directory / "best", start) if score is not None and config.evaluate_every else None
        began = time.monotonic()
        simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
        for step in console.progress(range(start + 1, config.steps + 1), description, config.steps, start):
            batch = next(data)
            state, metrics = step_fn(state, frozen, _to_devices(batch, mesh))
            if simulated:  # they share their threads: of several steps at once, each can wait for the others' for ever
                jax.block_until_ready(metrics)
            logs = config.log_batches or step % config.log_every == 0 or step == config.steps
            saves = step % config.save_every == 0 or step == config.steps
            scores = best is not None and (step % config.evaluate_every == 0 or step == config.steps)
            if logs or saves or scores:
                values = {name: float(value) for name, value in metrics.items()}
                _check_finite(values, step, description)
            if logs:
                if config.log_batches:
                    values["batch"] = batch_checksum(batch)
                log.append(step, {**values, "seconds": round(time.monotonic() - began, 2)})
            if scores and best is not None and score is not None:
                value = score(state)
                log.append(step, {"score": value})
                if best.beaten_by(value, step):
                    best.keep(value, step, checkpoints, state, data, tokenizer, meta)
            if saves:  # after the score: a kill in between scores again
                checkpoints.save(step, state, data, tokenizer, meta)
    return state


def _check_finite(values: dict[str, float], step: int, description: str) -> None:
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(values.get(name, 0.0)):
            raise FloatingPointError(
                f"{description}: {name} is {values[name]} at step {step}; lower train.optimizer.learning_rate, in "
                "another --workdir, or look at the data with: wam index DIR"
            )


class Best:
    """The checkpoint with the highest score so far, as a run folder of its own."""

    def __init__(self, directory: Path, resume_step: int = 0):
        self._directory, self._file = directory, directory / "score.json"
        self.score, self.step = -np.inf, 0
        saved = json.loads(self._file.read_text()) if self._file.exists() else None
        if saved is not None and saved["step"] <= resume_step:
            self.score, self.step = saved["score"], saved["step"]
        elif jax.process_index() == 0:  # of steps that a kill has undone: they will be trained and scored again
            shutil.rmtree(directory, ignore_errors=True)

    def beaten_by(self, score: float, step: int) -> bool:
        """Whether this is more than all before; says so."""
        console.log(f"step {step}: score {score:.3f}, best so far {max(score, self.score):.3f}")
        return score > self.score

    def keep(self, score: float, step: int, beside: Checkpoints, state: TrainState, *rest: Any) -> None:
        """Keeps a state (and what ``Checkpoints.save`` takes after it) instead of the last best one.

        Parameters that are not trained stay where they are, ``beside``.
        """
        kept = Checkpoints(self._directory / "checkpoints", keep=1)
        if jax.process_index() == 0:
            kept.share_base(beside)
        kept.save(step, state, *rest)
        kept.close()  # the older one goes when this one is complete
        self.score, self.step = score, step
        if jax.process_index() == 0:
            self._file.write_text(json.dumps({"step": step, "score": score}))


def batch_checksum(batch: Any) -> int:
    """CRC-32 over all arrays of a batch, in tree order."""
    checksum = 0
    for leaf in jax.tree.leaves(batch):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return checksum


def _to_devices(batch: Any, mesh: Mesh) -> Any:
    """This host's part of the batch, cut over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
