"""The pieces that most tables are made of."""

from wam_jax.wam.noise import Distribution, LogitNormal, StreamNoise, Uniform
from wam_jax.wam.spec import Expert, Mode, Move, Stage, Stream
from wam_jax.zoo.sizes import Size


def video_expert(size: Size, **changes) -> Expert:
    """The expert of a video model; or, in a unified model, the only one."""
    fields = {"name": "video", "width": size.video, "ffn_width": size.video_ffn, "conditions": size.conditions}
    return Expert(**{**fields, **changes})


def unified_expert(size: Size, **changes) -> Expert:
    """One set of weights for all streams."""
    conditions = tuple(dict.fromkeys((*size.conditions, *size.action_conditions)))
    return video_expert(size, **{"name": "all", "conditions": conditions, **changes})


def action_expert(size: Size, **changes) -> Expert:
    """A narrower expert beside the video's."""
    fields = {
        "name": "action",
        "width": size.action,
        "ffn_width": size.action_ffn,
        "conditions": size.action_conditions,
    }
    return Expert(**{**fields, **changes})


def video(expert: str = "video", noise: Distribution | StreamNoise | None = Uniform(), **changes) -> Stream:
    """Future latent frames."""
    return Stream(**{"name": "video", "kind": "video", "expert": expert, "noise": _stream_noise(noise), **changes})


def action(expert: str = "action", noise: Distribution | StreamNoise | None = Uniform(), **changes) -> Stream:
    """An action chunk."""
    return Stream(**{"name": "action", "kind": "action", "expert": expert, "noise": _stream_noise(noise), **changes})


def noise_named(name: str) -> Distribution:
    """Of systems that let one choose: "uniform"; or "logit_normal", more weight on high noise, for small models.

    Raises:
      ValueError: naming those that there are.
    """
    known: dict[str, Distribution] = {
        "uniform": Uniform(),
        "logit_normal": LogitNormal(mean=0.6, uniform_share=0.2, minimum=0.02),
    }
    if name not in known:
        raise ValueError(f"noise {name!r} is unknown (has: {', '.join(known)})")
    return known[name]


def _stream_noise(noise: Distribution | StreamNoise | None) -> StreamNoise | None:
    return noise if noise is None or isinstance(noise, StreamNoise) else StreamNoise(distribution=noise)


def state(expert: str = "video", **changes) -> Stream:
    """Proprioception, given."""
    return Stream(**{"name": "state", "kind": "state", "expert": expert, "role": "context", **changes})


def together(name: str, *moves: Move | str, steps: int = 10, **fields) -> Mode:
    """A mode of a single stage."""
    return Mode(name=name, stages=(stage(*moves, steps=steps),), **fields)


def stage(*moves: Move | str, steps: int = 10, solver: str = "euler") -> Stage:
    """Streams denoised together; a bare name goes to 0."""
    return Stage(moves=tuple(Move(m) if isinstance(m, str) else m for m in moves), steps=steps, solver=solver)


def modes_by_noise(steps: int = 10) -> tuple[Mode, ...]:
    """All uses of one model of video and actions, by which of them is given, missing or denoised (UWM, Motus)."""
    return (
        together("policy", "action", steps=steps, missing=("video",)),
        together("joint", "video", "action", steps=steps),
        together("video", "video", steps=steps, missing=("action",)),
        together("world_model", "video", steps=steps, given=("action",)),
        together("inverse_dynamics", "action", steps=steps, given=("video",)),
    )
