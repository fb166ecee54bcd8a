"""Self-contained checkpoints: state, data iterator, tokenizer, and all that is needed to run the model again.

A checkpoint directory holds one folder a step, each with the items

  state      parameters, moving average, optimizer moments, step      (Orbax, sharded)
  data       the position in the data order                           (grain)
  tokenizer  the frozen tokenizer's arrays                            (Orbax)
  meta       config, sizes, normalisation, as JSON

Parameters that are not trained never change: they lie once beside the steps, in ``base`` (Orbax).
"""

import os
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from wam_jax.nn.module import Params, paths
from wam_jax.training.state import TrainState

_BASE = "base"


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

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator | None, frozen: Any, meta: dict[str, Any]):
        """Starts writing; training may go on at once. Without ``data`` or ``frozen`` (a tokenizer) there is no such
        item; without the first, training cannot be resumed."""
        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(meta)}
        if data is not None:
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

    def acting_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the newest state's parameters that act, by path: the average, or what is trained without one."""
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(self._state_folder()).item_metadata.tree
        return _abstract(tree[_acting(tree)])

    def load_acting(self, like: Params) -> Params:
        """Some of these parameters, laid out as ``like``; nothing else of the state is read."""
        if not like:
            return {}
        folder = self._state_folder()
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            name = _acting(reader.metadata(folder).item_metadata.tree)
            return _read_part(reader, folder, {name: like})[name]

    def save_base(self, params: Params) -> None:
        """Writes the parameters that are not trained, once."""
        with ocp.StandardCheckpointer() as writer:
            writer.save(self.directory / _BASE, params, force=True)

    def share_base(self, other: "Checkpoints") -> None:
        """Lets both directories have one copy of them."""
        link = self.directory / _BASE
        if (other.directory / _BASE).is_dir() and not link.exists():
            link.symlink_to(os.path.relpath(other.directory / _BASE, self.directory))

    def base_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the parameters that are not trained, by path; empty where all are."""
        if not (self.directory / _BASE).is_dir():
            return {}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(self.directory / _BASE).item_metadata.tree
        return _abstract(tree)

    def load_base(self, like: Params) -> Params:
        """Some of the parameters that are not trained, laid out as ``like``."""
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return _read_part(reader, self.directory / _BASE, like)

    def _state_folder(self) -> Path:
        return self.directory / str(self._newest()) / "state"

    def _newest(self) -> int:
        if self.latest is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; train one with: wam train --config CONFIG")
        return self.latest

    def _restore(self, **items: Any) -> Any:
        return self._manager.restore(self._newest(), args=ocp.args.Composite(**items))

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


def _abstract(metadata: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype) for path, x in paths(metadata).items()}


def _acting(tree: Any) -> str:
    return "ema" if tree.get("ema") else "params"


def _read_part(reader: ocp.Checkpointer, folder: Path, like: Any) -> Any:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return reader.restore(folder, args=ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=True))


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
