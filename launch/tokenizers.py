"""What turns images into a model's data: a visual tokenizer and, for some systems, latent actions; found or trained."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource
from data_pipelines.windows import WindowSpec
from launch.alignment import feature_width, load_teacher
from launch.config import ConfigError, missing_run
from launch.data import Data, build_latents
from launch.job import Job, run_job
from wam_jax import console, processes
from wam_jax.encoders.lpips import load_lpips
from wam_jax.objectives.reconstruction import Judges, ReconstructionConfig, define_in_training
from wam_jax.sharding import replicated
from wam_jax.tokenizers import saved
from wam_jax.tokenizers.latent_action import (
    FrozenLatentActions,
    LatentActionConfig,
    define_latent_actions,
    latent_action_statistics,
)
from wam_jax.tokenizers.latent_action_usage import of_one_kind, usage
from wam_jax.tokenizers.published import load_published
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, encode_in_parts, latent_statistics
from wam_jax.training.losses import Tokenizers, latent_action_loss, tokenizer_loss, within_episodes
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.run import is_run, open_run
from wam_jax.training.trainer import Trainer

TOKENIZER, LATENT_ACTION = "tokenizer", "latent_action"  # folders of a run
_SAMPLE = 256  # windows that statistics are computed from


def check_tokenizers(config: ConfigDict) -> None:
    """Whether what a config starts from is there, before any work is done.

    Raises:
      ConfigError: a tokenizer is not, or latent actions; says how to make them.
    """
    init = config.tokenizer.init
    if init and not config.tokenizer.name and not (is_run(Path(init)) or saved.is_saved(Path(init) / TOKENIZER)):
        raise missing_run("tokenizer.init", init)
    if (init := config.latent_action.init) and not saved.is_saved(Path(init) / LATENT_ACTION):
        raise missing_run("latent_action.init", init)


def find_tokenizer(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path) -> Tokenizer:
    """A published tokenizer, that of ``config.tokenizer.init`` or ``config.init``, or one trained here.

    Raises:
      ConfigError: it is for other images, or not there.
    """
    image_size = tuple(config.data.image_size)
    if config.tokenizer.name:
        return load_published(config.tokenizer.name, image_size)
    start = config.tokenizer.init or config.init
    # A run that was begun is its own start: it goes on where config.init is gone, too.
    own = [workdir] if not config.tokenizer.init and start else []
    tokenizer = next((found for folder in [*own, start] if folder and (found := tokenizer_of(Path(folder)))), None)
    if tokenizer is None:
        if config.tokenizer.init:
            raise missing_run("tokenizer.init", config.tokenizer.init)
        return train_tokenizer(config, data, mesh, workdir / TOKENIZER)
    if tuple(tokenizer.config.image_size) != image_size:
        raise ConfigError(
            f"the tokenizer of {start} is for pictures of {tokenizer.config.image_size}; set data.image_size to that "
            f"(it is {image_size})"
        )
    return tokenizer


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """That of a run, of an export, or of a training that stopped after its tokenizer; None of anything else."""
    if is_run(folder):
        return open_run(folder).tokenizer()
    if saved.is_saved(folder / TOKENIZER):
        return saved.load(folder / TOKENIZER, "visual")  # type: ignore[return-value]
    return None


def train_tokenizer(config: ConfigDict, data: Data, mesh: Mesh, directory: Path) -> FrozenTokenizer:
    """The visual autoencoder, on clips of ``config.tokenizer.frames`` frames; then its latents' statistics."""
    numbers = config.tokenizer
    sizes = TokenizerConfig(image_size=tuple(config.data.image_size), **numbers.sizes)
    weights = ReconstructionConfig(**numbers.loss)
    judges = _judges(config, weights)
    clips = clip_windows(config, data, sizes.tubelet)
    job = Job(
        name="tokenizer",
        trainer=Trainer(
            definition=define_in_training(sizes, weights, feature_width(judges.teacher) if judges.teacher else 0),
            loss=tokenizer_loss(sizes, weights),
            config=OptimizerConfig(**numbers.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=numbers.batch_size,
        identity={
            "tokenizer": dataclasses.asdict(sizes),
            "loss": dataclasses.asdict(weights),
            "frames": numbers.frames,
            "teacher": numbers.teacher if weights.alignment else "",
        },
        frozen=jax.device_put(judges, replicated(mesh)),
        windows=clips,
    )
    finished = saved.is_saved(directory) and is_run(directory)
    state = run_job(config, data, directory, job)
    if finished:  # as it is, to the last bit, whatever machine goes on with it
        return saved.load(directory, "visual")  # type: ignore[return-value]
    sample = next(data.batches(_SAMPLE, config.seed + 1, None, clips)).images
    assert sample is not None
    tokenizer = latent_statistics(sizes, processes.gathered(state.acting["tokenizer"]), sample)
    processes.by_first(lambda: saved.save(directory, tokenizer), "the tokenizer is saved")
    return tokenizer


def clip_windows(config: ConfigDict, data: Data, tubelet: int) -> WindowSpec:
    """Windows of ``config.tokenizer.frames`` frames, as far apart as the model's."""
    steps = data.windows.frame_offsets
    spacing = steps[1] - steps[0] if len(steps) > 1 else 1
    offsets = tuple(spacing * number for number in range(config.tokenizer.frames))
    return dataclasses.replace(data.windows, frame_offsets=offsets, tubelet=tubelet)


def _judges(config: ConfigDict, weights: ReconstructionConfig) -> Judges:
    """The frozen networks that the loss needs.

    Raises:
      AssetMissing: one of them is not here; says how to get it.
    """
    lpips = load_lpips(config.tokenizer.lpips) if weights.perceptual else None
    return Judges(lpips, load_teacher(config.tokenizer) if weights.alignment else None)


def find_latent_actions(
    config: ConfigDict,
    data: Data,
    tokenizer: Tokenizer,
    latents: list[LatentSource] | None,
    mesh: Mesh,
    workdir: Path,
) -> FrozenLatentActions:
    """That of ``config.latent_action.init``, or one trained here.

    Raises:
      ConfigError: it is for latents of another shape, or was learned on another tokenizer's.
      TokenizerMissing: ``config.latent_action.init`` has none.
    """
    wanted = (len(data.windows.cameras), tuple(tokenizer.config.latent_shape))
    if not config.latent_action.init:
        return train_latent_actions(config, data, tokenizer, latents, mesh, workdir / LATENT_ACTION)
    folder = Path(config.latent_action.init) / LATENT_ACTION
    found = saved.load(folder, LATENT_ACTION)
    assert isinstance(found, FrozenLatentActions)
    if (found.config.cameras, tuple(found.config.latent_shape)) != wanted:
        raise ConfigError(
            f"the latent actions of {config.latent_action.init} are of {found.config.cameras} cameras with latents of "
            f"{found.config.latent_shape}, this data has {wanted[0]} with {wanted[1]}; train them on its tokenizer"
        )
    _check_learned_on(folder, tokenizer)
    return found


def _check_learned_on(folder: Path, tokenizer: Tokenizer) -> None:
    key, own = saved.latents_of(folder), tokenizer_key(tokenizer)
    if key is None:
        console.log(f"{folder} does not say on which tokenizer its latent actions were learned; be sure it is this one")
    elif key != own:
        raise ConfigError(
            f"the latent actions in {folder} were learned on latents of tokenizer {key[:12]}, this run has {own[:12]}; "
            "set tokenizer.init to the tokenizer they were learned on, or train others with latent_action.init=''"
        )


def train_latent_actions(
    config: ConfigDict,
    data: Data,
    tokenizer: Tokenizer,
    latents: list[LatentSource] | None,
    mesh: Mesh,
    directory: Path,
) -> FrozenLatentActions:
    """Inverse and forward dynamics on the data's latents; then the latent actions' statistics and use."""
    numbers = config.latent_action
    sizes = LatentActionConfig(
        latent_shape=tuple(tokenizer.config.latent_shape), cameras=len(data.windows.cameras), **numbers.sizes
    )
    definition = define_latent_actions(sizes)
    job = Job(
        name="latent actions",
        trainer=Trainer(
            definition=definition,
            loss=latent_action_loss(definition),
            config=OptimizerConfig(**numbers.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=numbers.batch_size,
        identity={"latent_action": dataclasses.asdict(sizes), "tokenizer": tokenizer_key(tokenizer)},
        frozen=jax.device_put(Tokenizers(tokenizer), replicated(mesh)),
        latents=latents,
    )
    state = run_job(config, data, directory, job)
    windows, mask = sample_latents(config, data, tokenizer, latents)
    acting = processes.gathered(state.acting)
    frozen = latent_action_statistics(sizes, acting, windows, mask)
    key = tokenizer_key(tokenizer)
    processes.by_first(lambda: saved.save(directory, frozen, key), "latent actions are saved")
    used = usage(sizes, acting, *of_one_kind(tokenizer.config.tubelet, windows, mask))
    console.log(f"latent actions: {used.summary}")
    return frozen


def sample_latents(
    config: ConfigDict, data: Data, tokenizer: Tokenizer, latents: list[LatentSource] | None
) -> tuple[Any, Any]:
    """Latents [M, T, V, h, w, C] and mask [M, T, V] of some training windows, each within an episode."""
    batch = next(data.batches(_SAMPLE, config.seed + 1, latents))
    found: Any = batch.latents
    if found is None:
        found = encode_in_parts(tokenizer, batch.images)
    return within_episodes(jnp.asarray(found), jnp.asarray(batch.image_mask), batch.episode)


def with_images_for(tokenizer: Tokenizer, data: Data) -> Data:
    """Data whose windows have as many images as the tokenizer merges into a frame."""
    return dataclasses.replace(data, windows=dataclasses.replace(data.windows, tubelet=tokenizer.config.tubelet))


def encode_dataset(data: Data, tokenizer: Tokenizer) -> list[LatentSource]:
    """Latents of every training frame, on disk beside the data."""
    return build_latents(data, tokenizer, tokenizer_key(tokenizer))


def tokenizer_key(tokenizer: Tokenizer | FrozenLatentActions) -> str:
    """A hash over a tokenizer's sizes and arrays."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for leaf in jax.tree.leaves(tokenizer):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
