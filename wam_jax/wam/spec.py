"""A world action model as a table: which streams, which weights they share, who sees whom, what noise, how sampled."""

import dataclasses

from wam_jax.wam.noise import StreamNoise
from wam_jax.wam.visibility import ISOLATED, Rule, components

STREAMS = ("video", "state", "action")
CONDITIONS = ("text", "state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expert:
    """One set of block weights. Experts of different widths meet in one joint attention over equal heads.

    Attributes:
      conditions: what sets the adaLN modulation of its tokens beside their noise level: "text" (the mean over the
        instruction's token features), "state" (proprioception).
    """

    name: str
    width: int
    ffn_width: int
    conditions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """A token sequence.

    Attributes:
      name: "video", "state" or "action".
      expert: whose weights its tokens run through; streams that name the same expert share all weights.
      noise: how it is noised in training; None for a stream that is only ever clean context.
      sampling_steps: Euler steps from noise to data.
    """

    name: str
    expert: str
    noise: StreamNoise | None = None
    sampling_steps: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The model, but for what the data decides (``Interface``).

    Attributes:
      streams, experts, visibility: the table.
      num_layers, num_heads, head_dim: of the trunk; the attention width is num_heads * head_dim in every expert.
      patch_size: latent rows and columns merged into one video token.
      context_noise: standard deviation of Gaussian noise on the clean latents in training (augmentation).
      dtype: of activations; parameters, softmax and norms are float32.
      remat: what the backward pass keeps: "none" recomputes nothing, "full" recomputes each layer.
      unroll: layers in one iteration of the scan; all of them is faster on a CPU and slower to compile.

    Raises:
      ValueError: naming the field that does not fit.
    """

    name: str
    streams: tuple[Stream, ...]
    experts: tuple[Expert, ...]
    num_layers: int
    num_heads: int
    head_dim: int
    visibility: tuple[Rule, ...] = ISOLATED
    patch_size: int = 2
    context_noise: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        names = [expert.name for expert in self.experts]
        for expert in self.experts:
            unknown = sorted(set(expert.conditions) - set(CONDITIONS))
            if unknown:
                raise ValueError(
                    f"{self.name}: expert {expert.name!r}: {unknown} are not conditions (has: {', '.join(CONDITIONS)})"
                )
        for stream in self.streams:
            if stream.name not in STREAMS:
                raise ValueError(f"{self.name}: stream {stream.name!r} is unknown (has: {', '.join(STREAMS)})")
            if stream.expert not in names:
                raise ValueError(
                    f"{self.name}: stream {stream.name!r} names expert {stream.expert!r} (has: {', '.join(names)})"
                )
        if self.head_dim % 2:
            raise ValueError(f"{self.name}: head_dim must be even for rotary positions, got {self.head_dim}")
        if self.remat not in ("none", "full"):
            raise ValueError(f"{self.name}: remat {self.remat!r} is unknown (has: none, full)")
        for part in self.components:
            draws = {(self.noise(name).draws, self.noise(name).batch_share) for name in part}
            if len(draws) > 1:
                raise ValueError(
                    f"{self.name}: streams {', '.join(part)} see each other, so they need equal noise.draws and "
                    f"noise.batch_share, got {sorted(draws)}"
                )

    def stream(self, name: str) -> Stream:
        return next(stream for stream in self.streams if stream.name == name)

    def expert(self, name: str) -> Expert:
        return next(expert for expert in self.experts if expert.name == name)

    def noise(self, stream: str) -> StreamNoise:
        noise = self.stream(stream).noise
        if noise is None:
            raise ValueError(f"{self.name}: stream {stream!r} is clean context; it is not denoised")
        return noise

    @property
    def denoised(self) -> tuple[str, ...]:
        """Names of the streams that are generated."""
        return tuple(stream.name for stream in self.streams if stream.noise is not None)

    @property
    def components(self) -> tuple[tuple[str, ...], ...]:
        """The denoised streams, in sets that can be denoised apart."""
        return components(self.denoised, self.visibility)

    def component(self, stream: str) -> tuple[str, ...]:
        """The streams that must be denoised together with this one."""
        return next(part for part in self.components if stream in part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """What the data decides: the sizes at the model's edges.

    Attributes:
      latent_shape: rows, columns, channels of one camera's latent frame.
      cameras: number of cameras.
      frame_steps: control step of each frame, 0 (now) first.
      action_horizon, action_size: of an action chunk.
      proprio_size: of the proprioception vector.
      text_width: of the frozen text features.
    """

    latent_shape: tuple[int, int, int]
    cameras: int
    frame_steps: tuple[int, ...]
    action_horizon: int
    action_size: int
    proprio_size: int
    text_width: int
