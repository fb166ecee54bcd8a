"""Stage 2 of World2Act: a policy made to do what was imagined; and the comparator that imitates it instead."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from data_pipelines.loader import SideBySide, endless
from launch.config import ConfigError, to_plain
from launch.data import open_data
from launch.imagined_starts import Imagined
from launch.job import Job, run_job
from launch.tokenizers import encode_dataset
from launch.world2act import Work, adapter_sizes
from wam_jax import console
from wam_jax.evaluation.success import EvaluationConfig, closed_loop_score
from wam_jax.nn.lora import FACTORS, Lora, with_lora
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import Policy
from wam_jax.posttraining.adapters import Adapters
from wam_jax.posttraining.eyes import eyes_of, frame_channels
from wam_jax.posttraining.online import (
    Follow,
    Frozen,
    Learner,
    ResidualLearner,
    Starts,
    WholeLearner,
    gradient_directions,
    online_loss,
    whole_episodes,
)
from wam_jax.posttraining.pseudo_actions import PseudoDemonstrations
from wam_jax.posttraining.residual import ResidualConfig
from wam_jax.posttraining.restore import define_correction, load_policy
from wam_jax.sharding import replicated
from wam_jax.sim import compilation
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.partition import everything, matching
from wam_jax.training.restore import fingerprint
from wam_jax.training.run import open_run
from wam_jax.training.trainer import Trainer

_AT_ONCE = 32  # imagined videos that are looked at


class Tracking(NamedTuple):
    """Episodes from starts that were imagined and not learned from.

    Attributes:
      similarity: of what the improved policy did and what was imagined.
      success: whether it ended in success.
      direction: before, of the gradient: see ``posttraining.online.gradient_directions``.
    """

    similarity: Float[np.ndarray, " K"]
    success: Bool[np.ndarray, " K"]
    direction: Float[np.ndarray, " K"]


def improve(config: ConfigDict, work: Work, mesh: Mesh, directory: Path) -> Tracking:
    """The policy acts from the starts of what was imagined, and learns to do the like.

    Returns:
      whether it then does, from other starts, and whether that goes with success (World2Act's claim).
    """
    learner, definition, identity = _learner(config, work)
    lora = config.posttrain.method == "lora"
    # LoRA's trainer holds the model: here, it would be there twice.
    base = dataclasses.replace(work.base.params, model={}) if lora else work.base.params
    frozen = jax.device_put(
        Frozen(
            base=base,
            adapters=work.adapter_params,
            text=work.task.text,
            embodiment=jnp.asarray(work.task.embodiment),
        ),
        replicated(mesh),
    )
    online = _Online(config, work, learner, frozen, _starts(config, work))
    job = online.job(mesh, definition, identity)
    untrained = work.base.params if lora else learner.acting(definition.init(jax.random.key(0)), frozen)
    before = work.base.policy if lora else learner.policy
    direction = online.tracked(gradient_directions, before, untrained, "direction of the gradient")
    console.log(f"gradient of similarity and what the expert would change: cosine {direction.mean():.2f} (chance: 0)")
    run_job(config, work.data, directory, job)
    after = load_policy(directory, mesh)
    followed = online.tracked(whole_episodes, after.policy, after.params, "episodes to their end")
    return Tracking(followed.similarity, followed.success > 0, direction)


def _starts(config: ConfigDict, work: Work) -> Callable[[Any], Starts]:
    """``take(rows)`` of the starts that were imagined; those that are only tracked come last."""
    video = _read(config, work, work.imagined, lambda adapters, latents: adapters.of_video(latents))

    def take(rows: Any) -> Starts:
        rows = np.asarray(rows)
        return Starts(states=jax.tree.map(lambda x: x[rows], work.starts), video=video[rows])

    return take


class _Online(NamedTuple):
    """Stage 2: the starts that were imagined, and who acts from them."""

    config: ConfigDict
    work: Work
    learner: Learner
    frozen: Frozen
    take: Callable[[Any], Starts]

    def job(self, mesh: Mesh, definition: Definition, identity: dict[str, Any]) -> Job:
        """The training; ``identity`` is what must be known to act with what is trained."""
        config, work = self.config, self.work
        numbers, lora, tokenizer = config.posttrain, config.posttrain.method == "lora", work.base.params.tokenizer
        return Job(
            name="post-training",
            trainer=Trainer(
                definition=definition,
                loss=online_loss(work.env, self.learner, work.adapters, work.data.codec, work.view),
                config=OptimizerConfig(**numbers.optimizer),
                mesh=mesh,
                seed=config.seed,
                jit=compilation.jit,
                trained=matching([FACTORS]) if lora else everything,
            ),
            batch_size=numbers.batch_size,
            identity={**identity, "posttrain": _described(config, work)},
            frozen=self.frozen,
            tokenizer=tokenizer if lora and tokenizer.saved else None,
            source=open_run(Path(config.init)) if lora else None,
            batches=lambda: endless(numbers.trajectories, numbers.batch_size, config.seed, self.take),
            score=_score(config, work, self.learner, self.frozen, mesh) if config.train.score.every else None,
        )

    def tracked(self, measure: Callable[..., Follow], policy: Policy, params: Any, what: str) -> Any:
        """``measure`` of a policy with its parameters, from the starts that are not learned from."""
        numbers, work = self.config.posttrain, self.work
        learner = dataclasses.replace(self.learner, policy=policy)  # type: ignore[type-var]
        run = compilation.jit(measure(work.env, learner, work.adapters, work.data.codec, work.view))
        last, found = numbers.trajectories + numbers.tracked, []
        for start in console.progress(range(numbers.trajectories, last, numbers.batch_size), what):
            rows = np.arange(start, start + numbers.batch_size)
            key = jax.random.fold_in(jax.random.key(self.config.seed), start)
            found.append(jax.tree.map(np.asarray, run(params, self.frozen, self.take(rows), key)))
        return jax.tree.map(lambda *rows: np.concatenate(rows), *found)


def imitate(config: ConfigDict, work: Work, mesh: Mesh, directory: Path) -> None:
    """All of the policy learns from imagined videos with guessed actions, and as much from its demonstrations.

    Raises:
      ConfigError: the policy sees other frames than a window's first and the next, or they are not encoded ahead.
    """
    base, imagined = work.base, Imagined(*(x[: config.posttrain.trajectories] for x in work.imagined))
    told, tokenizer = base.meta["identity"]["interface"], base.params.tokenizer
    if told["frame_steps"] != [0, work.chunk] or tokenizer.config.temporal or not config.data.precompute_latents:
        raise ConfigError(
            f"config.posttrain.method='pixels' is for policies whose frames are at steps (0, {work.chunk}), each "
            f"encoded by itself and ahead; {config.init} has {told['frame_steps']}"
        )
    if list(config.data.frame_steps) != told["frame_steps"] or config.data.action_horizon != told["action_horizon"]:
        raise ConfigError(f"config.data.frame_steps and action_horizon are not those of {config.init}; set them so")
    encode = jax.jit(lambda tokenizer, images: tokenizer.start(images)[0])
    latents = [np.asarray(encode(tokenizer, images)) for images in np.swapaxes(imagined.pictures, 0, 1)]
    actions = _read(config, work, imagined, lambda adapters, x: adapters.decode(adapters.of_video(x)))
    guessed = PseudoDemonstrations(
        latents=np.stack(latents, 1),
        actions=np.asarray(work.data.codec.decode(actions)),
        text=jax.tree.map(lambda x: np.asarray(x)[imagined.instruction], work.task.text),
        embodiment=work.task.embodiment,
        proprio=np.asarray(base.policy.proprio.normalise(imagined.proprio)),
    )
    data = dataclasses.replace(open_data(config.data), codec=base.policy.codec, proprio=base.policy.proprio)
    own, half = encode_dataset(data, tokenizer), config.train.batch_size // 2

    def batches() -> grain.DatasetIterator:
        dreamt = endless(
            len(guessed), half, config.seed, lambda rows: guessed.batch(rows, data.codec, told["action_horizon"])
        )
        return SideBySide(dreamt, data.batches(config.train.batch_size - half, config.seed, own))

    definition = base.policy.definition
    learner = WholeLearner(base.policy, work.data.codec)
    frozen = Frozen(base=base.params, adapters={}, text=work.task.text, embodiment=jnp.asarray(work.task.embodiment))
    job = Job(
        name="post-training",
        trainer=Trainer(
            definition=definition,
            loss=wam_loss(definition),
            config=OptimizerConfig(**config.posttrain.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=config.train.batch_size,
        identity={**_of_base(work), "posttrain": _described(config, work)},
        tokenizer=tokenizer if tokenizer.saved else None,
        source=open_run(Path(config.init)),
        batches=batches,
        score=_score(config, work, learner, frozen, mesh) if config.train.score.every else None,
    )
    run_job(config, data, directory, job)


def _read(
    config: ConfigDict, work: Work, imagined: Imagined, read: Callable[[Adapters, Array], Array]
) -> Float[np.ndarray, "K ..."]:
    """What ``read`` makes of the adapters and what they see of what was imagined."""
    run = jax.jit(lambda eyes, params, latents: read(work.adapters.bind(params), eyes.see(latents)))
    eyes, latents = eyes_of(adapter_sizes(config), work.world), imagined.latents
    parts = [latents[i : i + _AT_ONCE] for i in range(0, len(latents), _AT_ONCE)]
    return np.concatenate([np.asarray(run(eyes, work.adapter_params, x)) for x in parts])


def _described(config: ConfigDict, work: Work) -> dict[str, Any]:
    """What decides a post-training, beside its optimizer and data."""
    told = {name: value for name, value in to_plain(config.posttrain).items() if name != "optimizer"}
    return {
        **told,
        "base": fingerprint(work.base),
        "world": fingerprint(work.world),
        "windows": [work.windows, work.chunk],
    }


def _of_base(work: Work) -> dict[str, Any]:
    """What of the base's identity is that of the same model with other parameters."""
    names = ("model", "interface", "tokenizer", "codec", "proprio")
    return {name: work.base.meta["identity"][name] for name in names}


def _learner(config: ConfigDict, work: Work) -> tuple[Learner, Definition, dict[str, Any]]:
    """What is trained, and what must be known to act with it again."""
    base, codec = work.base, work.data.codec
    if config.posttrain.method == "residual":
        told = {
            "base": config.init,
            "base_fingerprint": fingerprint(base),
            "adapters": dataclasses.asdict(work.adapters.bind(work.adapters.shapes()).config),
            "channels": frame_channels(adapter_sizes(config), work.world),
            "chunks": codec.to_dict(),
            "view": work.view.to_dict(),
            "residual": dataclasses.asdict(ResidualConfig(**to_plain(config.posttrain.residual.options))),
        }
        corrected, _, residual = define_correction(told, base)
        return ResidualLearner(corrected), residual, {"correction": told}
    lora = to_plain(config.train.lora)
    definition = with_lora(base.policy.definition, Lora(**lora))
    identity = {**_of_base(work), "init": config.init, "lora": lora, "trainable": [FACTORS]}
    return WholeLearner(dataclasses.replace(base.policy, definition=definition), codec), definition, identity


def _score(config: ConfigDict, work: Work, learner: Learner, frozen: Frozen, mesh: Mesh) -> Callable[[Params], float]:
    """Closed-loop success of what is trained, on the episodes that are for choosing."""
    numbers = config.train.score
    settings = EvaluationConfig(**{**config.evaluation, "episodes": numbers.episodes, "seed": numbers.seed, "films": 0})
    score = closed_loop_score([work.task], learner.policy, work.base.image_size, settings, mesh)
    return lambda params: score(learner.acting(params, frozen))
