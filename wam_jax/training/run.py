"""A finished or interrupted run, read back: from its checkpoints, or from what ``wam export`` made of it."""

import abc
import json
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.lora import Lora, update
from wam_jax.nn.module import Params
from wam_jax.tokenizers.visual import FrozenTokenizer, Tokenizer, TokenizerConfig, define_tokenizer
from wam_jax.tokenizers.wan_tokenizer import load_wan_tokenizer
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.training.partition import paths, union
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Source, Tensors, WeightMap

# An export: config.json, and safetensors files whose names start with these.
CONFIG, MODEL, TOKENIZER = "config.json", "model", "tokenizer"


class Run(abc.ABC):
    """Attributes:

    meta: what is known of it; its ``identity`` is the part that decides the model.
    step: training steps behind it.
    """

    def __init__(self, meta: dict[str, Any], step: int):
        self.meta, self.step = meta, step
        self.identity: dict[str, Any] = meta["identity"]

    @property
    def codec(self) -> ActionCodec:
        return ActionCodec.from_dict(self.identity["codec"])

    @property
    def proprio(self) -> Affine:
        return Affine.from_dict(self.identity["proprio"])

    @property
    def lora(self) -> Lora | None:
        """How it was adapted."""
        return Lora(**self.identity["lora"]) if self.identity.get("lora") else None

    def tokenizer(self) -> Tokenizer:
        """The picture tokenizer that it was trained on.

        Raises:
          assets.AssetMissing: a published one, which is not here.
        """
        sizes = self.identity["tokenizer"]
        if "name" in sizes:
            return load_wan_tokenizer(sizes["name"], tuple(sizes["image_size"]))
        return self._saved_tokenizer(abstract_tokenizer(sizes))

    @abc.abstractmethod
    def _saved_tokenizer(self, like: FrozenTokenizer) -> FrozenTokenizer:
        """The tokenizer that is saved with the run."""

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its parameters by path, adapted layers as plain ones."""

    @abc.abstractmethod
    def load(self, like: Params) -> Params:
        """The parameters of ``like``, laid out like it, LoRA's updates added to their kernels."""


def is_run(directory: Path) -> bool:
    """Whether a folder is a run or an export."""
    return (directory / "checkpoints").is_dir() or "identity" in _exported_meta(directory)


def open_run(directory: Path) -> Run:
    """The newest checkpoint of a run, or an export.

    Raises:
      CheckpointError: if the folder is neither.
    """
    if (directory / "checkpoints").is_dir():
        return CheckpointRun(directory)
    if (directory / CONFIG).is_file():
        return ExportedRun(directory)
    raise CheckpointError(f"no checkpoint in {directory}; train one with: wam train --config CONFIG")


class CheckpointRun(Run):
    """A folder that training wrote."""

    def __init__(self, directory: Path):
        self._checkpoints = Checkpoints(directory / "checkpoints")
        super().__init__(self._checkpoints.meta(), self._checkpoints.latest or 0)
        self._trained, self._base = self._checkpoints.acting_shapes(), self._checkpoints.base_shapes()

    def _saved_tokenizer(self, like: FrozenTokenizer) -> FrozenTokenizer:
        return self._checkpoints.load("tokenizer", like)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: shape for path, shape in (self._base | self._trained).items() if "/lora_" not in path}

    def load(self, like: Params) -> Params:
        wanted = paths(like)
        trained = self._checkpoints.load_acting(_part(wanted, self._trained))
        if not self._base:
            return trained
        params = union(self._checkpoints.load_base(_part(wanted, self._base)), trained)
        return self._adapt(params, self.lora) if self.lora else params

    def factors(self) -> dict[str, jax.Array]:
        """LoRA's factors by path; empty where the run has none."""
        like = {p: jax.ShapeDtypeStruct(s, "float32") for p, s in self._trained.items() if "/lora_" in p}
        return paths(self._checkpoints.load_acting(unflatten_dict(like, sep="/"))) if like else {}

    def _adapt(self, params: Params, lora: Lora) -> Params:
        flat, factors = paths(params), self.factors()
        for path in [p for p in flat if p.replace("kernel", "lora_a") in factors]:
            place = _everywhere(flat[path].sharding)
            names = {name: factors[path.replace("kernel", name)] for name in ("lora_a", "lora_b")}
            layer = {"kernel": flat[path], **jax.device_put(names, place)}
            flat[path] = flat[path] + update(layer, lora.scale)
        return unflatten_dict(flat, sep="/")


class ExportedRun(Run):
    """A folder that ``wam export`` wrote."""

    def __init__(self, directory: Path):
        meta = _exported_meta(directory)
        if "identity" not in meta:
            raise CheckpointError(f"{directory / CONFIG} has no 'identity': it is not an export of this project")
        super().__init__(meta, meta["step"])
        self._directory, self._model = directory, _open(directory, MODEL)

    def _saved_tokenizer(self, like: FrozenTokenizer) -> FrozenTokenizer:
        tree = {"params": like.params, "mean": like.mean, "std": like.std}
        arrays = mapping.load(by_path(tree), tree, _open(self._directory, TOKENIZER))
        return FrozenTokenizer(**arrays, config=like.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name.replace(".", "/"): shape for name, shape in self._model.shapes().items()}

    def load(self, like: Params) -> Params:
        return mapping.load(by_path(like), like, self._model, unused=(".*",))


def _exported_meta(directory: Path) -> dict[str, Any]:
    """What an export's ``config.json`` says; other projects have files of that name, too."""
    file = directory / CONFIG
    return json.loads(file.read_text()) if file.is_file() else {}


def by_path(params: Params) -> WeightMap:
    """The names that our arrays have in an export: their paths, with dots."""
    return unflatten_dict({path: Source(path.replace("/", ".")) for path in paths(params)}, sep="/")


def abstract_tokenizer(sizes: dict[str, Any]) -> FrozenTokenizer:
    """Shapes of a frozen tokenizer's arrays, from the JSON of its ``TokenizerConfig``."""
    config = TokenizerConfig(**{**sizes, "image_size": tuple(sizes["image_size"])})
    channels = jax.ShapeDtypeStruct((config.channels,), "float32")
    return FrozenTokenizer(define_tokenizer(config).shapes(), channels, channels, config)  # type: ignore[arg-type]


def _open(directory: Path, stem: str) -> Tensors:
    index = directory / f"{stem}.safetensors.index.json"
    return open_weights(index if index.is_file() else directory / f"{stem}.safetensors")


def _part(wanted: dict[str, Any], there: dict[str, Any]) -> Params:
    return unflatten_dict({path: leaf for path, leaf in wanted.items() if path in there}, sep="/")


def _everywhere(sharding: Sharding) -> Sharding:
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
