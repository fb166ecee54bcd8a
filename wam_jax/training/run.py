"""A finished or interrupted run, read back: from its checkpoints, or from what ``wam export`` made of it."""

import abc
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.lora import Lora, is_factor, merge
from wam_jax.nn.module import Params, by_path, paths
from wam_jax.objectives.hidden_alignment import PROJECTORS
from wam_jax.sharding import placed
from wam_jax.tokenizers.published import load_published
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Tensors

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
        if "correction" in self.identity:
            base = self.identity["correction"]["base"]
            raise CheckpointError(
                f"this run is a residual on the policy of {base}; `wam evaluate` acts with it, all else is that one's"
            )

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
            return load_published(sizes["name"], tuple(sizes["image_size"]))
        return self._saved_tokenizer(abstract_tokenizer(sizes))

    @abc.abstractmethod
    def _saved_tokenizer(self, like: FrozenTokenizer) -> FrozenTokenizer:
        """The tokenizer that is saved with the run."""

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its parameters by path, adapted layers as plain ones."""

    @abc.abstractmethod
    def dtypes(self) -> dict[str, Any]:
        """Of the same, as they are kept."""

    @abc.abstractmethod
    def load(self, like: Params) -> Params:
        """The parameters of ``like``, laid out like it, LoRA's updates added to their kernels."""


def is_run(directory: Path) -> bool:
    """Whether a folder is a run with a complete checkpoint, or an export."""
    return _has_checkpoint(directory) or "identity" in _exported_meta(directory)


def open_run(directory: Path) -> Run:
    """The newest checkpoint of a run, or an export.

    Raises:
      CheckpointError: if the folder is neither.
    """
    if _has_checkpoint(directory):
        return CheckpointRun(directory)
    if (directory / CONFIG).is_file():
        return ExportedRun(directory)
    raise CheckpointError(f"no checkpoint in {directory}; train one with: wam train --config CONFIG")


class CheckpointRun(Run):
    """A folder that training wrote; without what training drops."""

    def __init__(self, directory: Path):
        self._checkpoints = Checkpoints(directory / "checkpoints")
        super().__init__(self._checkpoints.meta(), self._checkpoints.latest or 0)
        self._trained, self._base = self._checkpoints.acting_shapes(), self._checkpoints.base_shapes()
        everything = self._base | self._trained
        self._all = {path: leaf for path, leaf in everything.items() if not path.startswith(f"{PROJECTORS}/")}

    def _saved_tokenizer(self, like: FrozenTokenizer) -> FrozenTokenizer:
        return self._checkpoints.load("tokenizer", like)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: leaf.shape for path, leaf in self._all.items() if not is_factor(path)}

    def dtypes(self) -> dict[str, Any]:
        return {path: leaf.dtype for path, leaf in self._all.items() if not is_factor(path)}

    def load(self, like: Params) -> Params:
        wanted, lora = paths(like), self.lora
        params = paths(self._checkpoints.load_acting(_part(wanted, self._trained)))
        if self._base:
            params |= paths(self._checkpoints.load_base(_part(wanted, self._base)))
        if lora is None:
            return by_path(params)
        places = {path: leaf.sharding for path, leaf in wanted.items()}

        def adapted(plain: dict[str, jax.Array], factors: dict[str, jax.Array]) -> Params:
            return merge(by_path(plain | factors), lora.scale)

        adapt = jax.jit(adapted, donate_argnums=0, out_shardings=by_path(places))
        kernels = {path.rsplit("/", 1)[0] for path in params}
        factors = {path: x for path, x in self.factors(like).items() if path.rsplit("/", 1)[0] in kernels}
        return adapt(params, factors)

    def factors(self, like: Params | None = None) -> dict[str, jax.Array]:
        """LoRA's factors by path, on all devices of ``like`` (default: on the first); empty where there are none."""
        place = _first_device() if like is None else _everywhere(jax.tree.leaves(like)[0].sharding)
        wanted = {path: placed(leaf, place) for path, leaf in self._trained.items() if is_factor(path)}
        return paths(self._checkpoints.load_acting(by_path(wanted))) if wanted else {}

    def beside_factors(self) -> dict[str, jax.Array]:
        """What was trained beside LoRA's factors, by path."""
        wanted = {path: placed(leaf, _first_device()) for path, leaf in self._trained.items() if not is_factor(path)}
        return paths(self._checkpoints.load_acting(by_path(wanted))) if wanted else {}


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
        arrays = mapping.load(mapping.own_names(tree), tree, _open(self._directory, TOKENIZER))
        return FrozenTokenizer(**arrays, config=like.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name.replace(".", "/"): shape for name, shape in self._model.shapes().items()}

    def dtypes(self) -> dict[str, Any]:
        return dict.fromkeys(self.shapes(), "float32")

    def load(self, like: Params) -> Params:
        return mapping.load(mapping.own_names(like), like, self._model, unused=(".*",))


def _has_checkpoint(directory: Path) -> bool:
    """A folder alone says nothing: a run that was killed early has one, too. Steps get their number when complete."""
    folder = directory / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def _exported_meta(directory: Path) -> dict[str, Any]:
    """What an export's ``config.json`` says; other projects have files of that name, too."""
    file = directory / CONFIG
    return json.loads(file.read_text()) if file.is_file() else {}


def abstract_tokenizer(sizes: dict[str, Any]) -> FrozenTokenizer:
    """Shapes of a frozen tokenizer's arrays, from the JSON of its ``TokenizerConfig``."""
    config = TokenizerConfig(**{**sizes, "image_size": tuple(sizes["image_size"])})
    here = _first_device()
    channels = jax.ShapeDtypeStruct((config.channels,), "float32", sharding=here)
    params = jax.tree.map(lambda x: placed(x, here), define_tokenizer(config).shapes())
    return FrozenTokenizer(params, channels, channels, config)  # type: ignore[arg-type]


def _open(directory: Path, stem: str) -> Tensors:
    index = directory / f"{stem}.safetensors.index.json"
    return open_weights(index if index.is_file() else directory / f"{stem}.safetensors")


def _part(wanted: dict[str, Any], there: dict[str, Any]) -> Params:
    return by_path({path: leaf for path, leaf in wanted.items() if path in there})


def _first_device() -> Sharding:
    """Said where arrays are read: else they are looked for on the devices that they were written from."""
    return SingleDeviceSharding(jax.local_devices()[0])


def _everywhere(sharding: Sharding) -> Sharding:
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
