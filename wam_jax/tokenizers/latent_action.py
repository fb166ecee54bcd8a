"""Latent actions: what happened between two consecutive latent frames, in a few numbers, learned without action labels.

An inverse dynamics model infers the latent action of a pair; a forward dynamics model predicts the second frame from
the first and it. What is so narrow between them cannot hold a picture, only the change. Three kinds:

  kind          after                latent action of                prediction
  "transport"   RepWAM (2606.13674)  ``size`` numbers, no more       K z + δ: tokens moved, and a rest
  "vq"          LAPA (2410.11758)    one of ``codebook`` codes       z + δ
  "vae"         AdaWorld (2503.18938) a mean, with β times a KL       z + δ

All three work on the frozen, normalised latents of a visual tokenizer (LAPA and AdaWorld: on pixels, with
transformers), and share their layers, so that they differ in what the table says.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn.module import Definition, Params, define
from wam_jax.tokenizers.latent_action_bottlenecks import Codes, Gaussian, Metrics, Narrow
from wam_jax.tokenizers.latent_action_dynamics import (
    GATHER_HEADS,
    Change,
    Direct,
    Grid,
    InverseDynamics,
    Transport,
)

KINDS = ("transport", "vq", "vae")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentActionConfig:
    """Sizes of a latent action tokenizer.

    Attributes:
      kind: "transport", "vq" or "vae"; see the module.
      latent_shape: of one camera's latents: rows, columns, channels.
      cameras: of a frame.
      size: of a latent action.
      hidden, layers: of the inverse and of the forward model.
      codebook: "vq": the number of codes.
      beta: "vae": weight of the KL, summed over dimensions, beside the squared error of unit-variance latents.

    Raises:
      ValueError: for an unknown kind, or a size that cannot be.
    """

    kind: str = "transport"
    latent_shape: tuple[int, int, int]
    cameras: int = 1
    size: int = 4
    hidden: int = 256
    layers: int = 4
    codebook: int = 64
    beta: float = 1e-3

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"latent_action.kind={self.kind!r} is unknown (has: {', '.join(KINDS)})")
        least = {"size": 2 if self.kind == "vq" else 1, "layers": 2, "codebook": 2, "cameras": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(
                    f"latent_action.{name}={getattr(self, name)} is too few for {self.kind!r}; set {value} or more"
                )

        if self.hidden % GATHER_HEADS:
            raise ValueError(f"latent_action.hidden={self.hidden} does not divide by {GATHER_HEADS}")

    @property
    def grid(self) -> Grid:
        """Cameras, rows, columns."""
        return (self.cameras, *self.latent_shape[:2])

    @property
    def num_tokens(self) -> int:
        """Of a frame, all cameras together."""
        return self.cameras * self.latent_shape[0] * self.latent_shape[1]


class LatentActionTokenizer(nnx.Module):
    """An inverse model, a bottleneck, and a forward model. Tokens and latent actions are float, unnormalised ones."""

    def __init__(self, config: LatentActionConfig, rngs: nnx.Rngs):
        self.config = config
        sizes, channels = (config.hidden, config.layers), config.latent_shape[2]
        self.bottleneck = _bottleneck(config, rngs)
        self.inverse = InverseDynamics(config.grid, channels, self.bottleneck.inputs, *sizes, rngs)
        forward = Transport if config.kind == "transport" else Direct
        self.forward = forward(config.grid, channels, config.size, *sizes, rngs)

    def infer(self, before: Float[Array, "B N C"], after: Float[Array, "B N C"]) -> Float[Array, "B A"]:
        """The latent action between two frames, as it is used: the numbers, the code's vector, the mean.

        Raises:
          ValueError: if these are not the tokens of a frame.
        """
        return self.bottleneck(self.inverse(self._checked(before), self._checked(after)))

    def predict(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Float[Array, "B N C"]:
        """The frame after ``before``, given what happens between.

        Raises:
          ValueError: if these are not the tokens of a frame.
        """
        moved, residual = self.change(before, latent_action)
        return moved + residual

    def change(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Change:
        """The prediction in its two parts: tokens where they move to, and what is added to them."""
        return self.forward(self._checked(before), latent_action)

    def sample(
        self, before: Float[Array, "B N C"], after: Float[Array, "B N C"], counted: Bool[Array, "B"], key: jax.Array
    ) -> tuple[Float[Array, "B A"], Float[Array, ""], Metrics]:
        """What training predicts from, and the bottleneck's own loss and metrics over the pairs that count."""
        x = self.inverse(self._checked(before), self._checked(after))
        return *self.bottleneck.sample(x, counted, key), self.bottleneck.metrics(x, counted)

    def _checked(self, tokens: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        config = self.config
        if tokens.shape[-2:] != (config.num_tokens, config.latent_shape[2]):
            views, rows, columns = config.grid
            raise ValueError(
                f"tokens of shape {tokens.shape} are not {config.num_tokens} tokens ({views} cameras of {rows} x "
                f"{columns}) of {config.latent_shape[2]} channels; set latent_action.latent_shape and cameras"
            )
        return tokens


def _bottleneck(config: LatentActionConfig, rngs: nnx.Rngs) -> Narrow | Codes | Gaussian:
    if config.kind == "vq":
        return Codes(config.size, config.codebook, rngs)
    return Gaussian(config.size, config.beta) if config.kind == "vae" else Narrow(config.size)


def define_latent_actions(config: LatentActionConfig) -> Definition[LatentActionTokenizer]:
    """The tokenizer's definition."""
    return define(lambda rngs: LatentActionTokenizer(config, rngs))


def consecutive_pairs(
    config: LatentActionConfig, latents: Float[Array, "*B T V h w C"], mask: Bool[Array, "*B T V"] | None = None
) -> tuple[Float[Array, "*B t N C"], Float[Array, "*B t N C"], Bool[Array, "*B t V"]]:
    """Frames 0 … T-2, frames 1 … T-1, and which cameras are there in both; what is not is zeros in both.

    Raises:
      ValueError: if the latents are not those of ``config``, or have one frame only.
    """
    wanted = (config.cameras, *config.latent_shape)
    if latents.ndim < 5 or latents.shape[-4:] != wanted or latents.shape[-5] < 2:
        raise ValueError(
            f"latents of shape {latents.shape} are not [..., T, V, h, w, C] with two frames or more and V, h, w, C = "
            f"{wanted}; set latent_action.latent_shape and cameras"
        )
    mask = jnp.ones(latents.shape[:-3], bool) if mask is None else jnp.asarray(mask)
    there = mask[..., :-1, :] & mask[..., 1:, :]
    frames = jnp.asarray(latents, jnp.float32)
    before, after = (
        rearrange(jnp.where(there[..., None, None, None], x, 0.0), "... v h w c -> ... (v h w) c")
        for x in (frames[..., :-1, :, :, :, :], frames[..., 1:, :, :, :, :])
    )
    return before, after, there


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenLatentActions:
    """A trained latent action tokenizer and the statistics of its latent actions.

    It is a pytree of its arrays: pass it to a jitted function as an argument, beside the training state.

    Attributes:
      params: of ``LatentActionTokenizer``.
      mean, std: f32[A], of the latent actions it was frozen with.
      config: static.
    """

    params: Params
    mean: Float[Array, "A"]
    std: Float[Array, "A"]
    config: LatentActionConfig = dataclasses.field(metadata={"static": True})

    def encode(
        self, latents: Float[Array, "*B T V h w C"], mask: Bool[Array, "*B T V"] | None = None
    ) -> Float[Array, "*B t A"]:
        """Normalised latent actions of all consecutive pairs, t = T-1, float32. No gradient passes.

        A pair counts where ``mask`` has one of its cameras in both frames; elsewhere the values mean nothing.

        Raises:
          ValueError: if the latents are not those of ``config``, or have one frame only.
        """
        latent_actions = _infer(self.config, self.params, latents, mask)
        return jax.lax.stop_gradient((latent_actions - self.mean) / self.std)


def latent_action_statistics(
    config: LatentActionConfig,
    params: Params,
    latents: Float[Array, "M T V h w C"],
    mask: Bool[Array, "M T V"] | None = None,
) -> FrozenLatentActions:
    """Freezes a trained tokenizer with the mean and standard deviation of its latent actions over ``latents``.

    A dimension that varies by less than a hundredth of what the widest one does is noise, and is not blown up: its
    standard deviation counts as that hundredth.
    """
    mask = jnp.ones(latents.shape[:3], bool) if mask is None else jnp.asarray(mask)
    # A few windows at a time: the features of all tokens of a data set would not fit.
    infer = jax.jit(lambda p, x, m: jax.lax.map(lambda w: _infer(config, p, *w), (x, m), batch_size=64))
    counted = (mask[:, :-1] & mask[:, 1:]).any(-1)[..., None]
    latent_actions = infer(params, jnp.asarray(latents), mask)
    mean = jnp.mean(latent_actions, (0, 1), where=counted)
    std = jnp.std(latent_actions, (0, 1), where=counted)
    return FrozenLatentActions(params, mean, jnp.maximum(std, 0.01 * std.max()) + 1e-6, config)


def _infer(
    config: LatentActionConfig,
    params: Params,
    latents: Float[Array, "*B T V h w C"],
    mask: Bool[Array, "*B T V"] | None,
) -> Float[Array, "*B t A"]:
    before, after, _ = consecutive_pairs(config, latents, mask)
    model = define_latent_actions(config).bind(jax.lax.stop_gradient(params))
    # Products in float32 on every platform: training and serving see the same latent actions.
    with jax.default_matmul_precision("highest"):
        flat = model.infer(*(x.reshape(-1, *x.shape[-2:]) for x in (before, after)))
    return flat.reshape(*before.shape[:-2], -1)
