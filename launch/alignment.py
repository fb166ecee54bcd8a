"""What ``config.alignment`` asks for: a variant of the model, and its teacher's features of every frame."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource, TaughtLatents
from data_pipelines.latents import Identity, LatentCache
from launch.config import ConfigError
from launch.data import Data, latents_folder
from wam_jax.encoders import registry
from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.objectives.hidden_alignment import AlignmentConfig, check_pass, video_stream
from wam_jax.wam.spec import Spec

# The pass whose tokens are aligned, by variant.
VARIANTS = {"none": None, "frozen": None, "shared": "video", "video": "video", "action_condition": "action_condition"}
TEACHER_FIELDS = ("teacher", "teacher_size", "random_teacher")  # of config.alignment


def aligned_pass(config: ConfigDict) -> str | None:
    """The pass that is aligned; None where none is.

    Raises:
      ConfigError: for an unknown variant.
    """
    variant = config.alignment.variant
    if variant not in VARIANTS:
        raise ConfigError(f"config.alignment.variant={variant!r} is unknown (has: {', '.join(VARIANTS)})")
    return VARIANTS[variant]


def check_alignment(config: ConfigDict, spec: Spec, starts: bool) -> None:
    """Finds what is wrong with ``config.alignment`` of a system; ``starts``: a start is known, or will be.

    Raises:
      ConfigError, ValueError: naming the field.
      KeyError, AssetMissing: the teacher is unknown, or its weights are not here.
    """
    part, on = config.alignment, aligned_pass(config)
    if part.variant == "frozen":
        unfrozen_patterns(spec)
        if not (config.init or starts):
            raise ConfigError(
                "config.alignment.variant='frozen' would freeze the video expert at its random start; set config.init "
                "to a run of it"
            )
    if on is not None:
        check_pass(spec, on)
        AlignmentConfig(part.weight, on, tuple(part.layers), part.projector, 1).layers_of(spec)
        registry.find(part.teacher)


def unfrozen_patterns(spec: Spec) -> list[str]:
    """What the variant "frozen" trains: all but the expert of the video, and the maps of its streams.

    Raises:
      ConfigError: if actions run through that expert, too.
    """
    expert = spec.stream(video_stream(spec)).expert
    if any(stream.kind == "action" and stream.expert == expert for stream in spec.streams):
        raise ConfigError(
            f"config.alignment.variant='frozen': {spec.name} has actions and video in one expert, {expert!r}; choose "
            "another variant, or a system with an action expert"
        )
    maps = "|".join(stream.name for stream in spec.streams if stream.expert == expert)
    return [rf"(?!((trunk/blocks|conditioning|text_in|image_in)/{expert}|maps/({maps}))/).*"]


def load_teacher(part: ConfigDict) -> FrozenEncoder:
    """The encoder ``part.teacher``, with its pictures resized to ``teacher_size`` where that is set.

    Its features are standardised: those of networks without a last norm are of any size, and would drown other losses.

    Raises:
      KeyError: it is unknown.
      AssetMissing: its weights are not here; says how to get them.
    """
    teacher = dataclasses.replace(registry.load(part.teacher, dtype=jnp.float32), standardized=True)
    if part.get("random_teacher", False):
        teacher = dataclasses.replace(teacher, params=teacher.definition.init(jax.random.key(0)))
    if size := tuple(part.teacher_size):
        assert teacher.preprocessing is not None
        teacher = dataclasses.replace(teacher, preprocessing=dataclasses.replace(teacher.preprocessing, size=size))
    return teacher


def feature_width(teacher: FrozenEncoder) -> int:
    """Channels of its features."""
    return jax.eval_shape(teacher, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)).shape[-1]


def with_features(
    config: ConfigDict, data: Data, latents: list[LatentSource], teacher: FrozenEncoder
) -> list[LatentSource]:
    """Latents with the teacher's features of every training frame beside them; computed once, kept beside the data."""
    part, windows = config.alignment, data.windows
    key = " ".join(str(part[name]) for name in TEACHER_FIELDS)
    encode = jax.jit(lambda teacher, images: teacher(images))
    taught: list[LatentSource] = []
    for number, (store, source) in enumerate(zip(data.train, latents, strict=True)):
        identity = Identity(key, store.fingerprint, windows.cameras, windows.image_size)
        features = LatentCache.build(
            store,
            windows.cameras,
            lambda images: encode(teacher, images),
            latents_folder(data, number, identity),
            key,
            image_size=windows.image_size,
            num_threads=data.config.threads,
        )
        taught.append(TaughtLatents(source, features))
    return taught
