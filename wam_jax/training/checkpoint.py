"""Self-contained checkpoints: state, data iterator, tokenizer, and all that is needed to run the model again.

A checkpoint directory holds one folder a step, each with the items

  state      parameters, moving average, optimizer moments, step      (Orbax, sharded)
  data       the position in the data order                           (grain)
  tokenizer  the frozen tokenizer's arrays                            (Orbax)
  meta       config, sizes, normalisation, as JSON
"""

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from wam_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """There is no usable checkpoint, or it was made by something else."""


class Checkpoints:
    """The checkpoints of one run; the last ``keep`` are kept. Writes are atomic: a kill leaves the older one intact."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "tokenizer": ocp.StandardCheckpointHandler(),
            "data": grain.checkpoint.CheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator, frozen: Any, meta: dict[str, Any]):
        """Starts writing; training may go on at once. ``frozen`` None writes no tokenizer item."""
        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(meta)}
        items["data"] = grain.checkpoint.CheckpointSave(data)
        if frozen is not None:
            items["tokenizer"] = ocp.args.StandardSave(frozen)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: TrainState, data: grain.DatasetIterator, meta: dict[str, Any]) -> TrainState:
        """The newest state, laid out as ``like``, with ``data`` moved to where it was.

        Args:
          like: arrays or ``jax.ShapeDtypeStruct`` with shardings.
          data: an iterator over the same dataset; changed in place.
          meta: what this run would save; its ``identity`` must equal the saved one.

        Raises:
          CheckpointError: if the checkpoint is of another configuration; names the first field that differs.
        """
        self._check_same(self.meta()["identity"], meta["identity"])
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._restore(
            state=ocp.args.StandardRestore(abstract), data=grain.checkpoint.CheckpointRestore(data)
        )
        return restored["state"]

    def meta(self) -> dict[str, Any]:
        """The newest checkpoint's JSON part."""
        return self._restore(meta=ocp.args.JsonRestore())["meta"]

    def load(self, item: str, like: Any) -> Any:
        """One item (``state`` or ``tokenizer``) of the newest checkpoint, laid out as ``like``."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._restore(**{item: ocp.args.StandardRestore(abstract)})[item]

    def _restore(self, **items: Any) -> Any:
        if self.latest is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; train one with: wam train --config CONFIG")
        return self._manager.restore(self.latest, args=ocp.args.Composite(**items))

    def close(self) -> None:
        """Waits for pending writes."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_same(self, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
        difference = first_difference(saved, wanted)
        if difference is not None:
            path, old, new = difference
            raise CheckpointError(
                f"checkpoint {self.directory} was made with {path}={old!r}, this run has {new!r}; "
                "set it back or choose another --workdir"
            )


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON trees differ, as (dotted path, old, new); None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
            if found:
                return found
        return None
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            found = first_difference(a, b, f"{path}[{index}]")
            if found:
                return found
        return None
    return None if old == new else (path, old, new)
