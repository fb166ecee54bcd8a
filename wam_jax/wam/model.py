"""From observations to velocities: embeddings in, the trunk, heads out."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.embeddings import Conditioning, TextProjection, grid_positions
from wam_jax.nn.module import Linear, standardize
from wam_jax.types import Text
from wam_jax.wam.spec import Interface, Spec
from wam_jax.wam.trunk import Cache, Modulation, Tokens, Trunk
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What every denoising pass shares.

    Attributes:
      cache: the clean context's keys and values.
      text: the instruction at each expert's width.
      conditions: the vectors that set adaLN modulation beside the noise level.
    """

    cache: Cache
    text: dict[str, Text]
    conditions: dict[str, Float[Array, "B C"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy:
    """A stream on its way from noise to data, in M independent draws over one context.

    video: values f32[B, M, T-1, V, h, w, C]; action: values f32[B, M, K, A].
    """

    values: Float[Array, "B M ..."]
    level: Float[Array, "B M"]


class WorldActionModel(nnx.Module):
    """Predicts the velocity of future video latents and of the action chunk, given the present and an instruction."""

    def __init__(self, spec: Spec, interface: Interface, rngs: nnx.Rngs):
        self.spec, self.interface = spec, interface
        rows, columns, channels = interface.latent_shape
        if rows % spec.patch_size or columns % spec.patch_size:
            raise ValueError(
                f"latents of {rows} x {columns} do not divide by spec.patch_size={spec.patch_size}; "
                "change it or the tokenizer's patch size"
            )
        self.grid = (rows // spec.patch_size, columns // spec.patch_size)
        video, action, state = (self._width(name) for name in ("video", "action", "state"))
        patch = channels * spec.patch_size**2
        self.video_in = Linear(patch, video, (None, "embed"), rngs)
        self.video_out = Head(video, patch, rngs)
        self.video_position = nnx.Param(
            grid_positions(rngs.params(), interface.cameras, *self.grid, video), axes=(None, None, None, "embed")
        )
        self.action_in = Linear(interface.action_size, action, (None, "embed"), rngs)
        self.action_out = Head(action, interface.action_size, rngs)
        self.action_position = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (interface.action_horizon, action)), axes=(None, "embed")
        )
        self.state_in = Linear(interface.proprio_size, state, (None, "embed"), rngs)
        sizes = {"text": interface.text_width, "state": interface.proprio_size}
        self.conditioning = nnx.Dict(
            {e.name: Conditioning(e.width, {name: sizes[name] for name in e.conditions}, rngs) for e in spec.experts}
        )
        self.text_in = nnx.Dict({e.name: TextProjection(interface.text_width, e.width, rngs) for e in spec.experts})
        self.trunk = Trunk(spec, rngs)

    def prefix(self, latents: Float[Array, "B V h w C"], proprio: Float[Array, "B P"], text: Text) -> Prefix:
        """Runs the clean context (present frame of every camera, proprioception) once; all denoising reuses it."""
        dtype = jnp.dtype(self.spec.dtype)
        video = self._embed_video(latents[:, None].astype(dtype))[0]
        state = self.state_in(proprio.astype(dtype))[:, None]
        groups = (
            Group(stream="video", block=0, clean=True, size=video.shape[1]),
            Group(stream="state", block=0, clean=True, size=1),
        )
        positions = (self._video_positions(0), np.zeros((1, 3), np.float32))
        levels = {"clean": jnp.zeros(latents.shape[0])}
        conditions = {"text": standardize(pool(text)).astype(dtype), "state": proprio.astype(dtype)}
        projected = {
            name: Text(features=project(text.features.astype(dtype)), mask=text.mask)
            for name, project in self.text_in.items()
        }
        tokens = self._by_expert(groups, (video, state), positions, levels, conditions)
        _, cache = self.trunk(tokens, projected, keep=True)
        assert cache is not None
        return Prefix(cache, projected, conditions)

    def velocity(self, prefix: Prefix, noisy: Mapping[str, Noisy]) -> dict[str, Float[Array, "B M ..."]]:
        """Velocity of each stream in ``noisy``, given the prefix and whatever of each other they may see."""
        groups: list[Group] = []
        values: list[Array] = []
        positions: list[np.ndarray] = []
        levels: dict[str, Array] = {}
        for stream, state in noisy.items():
            for draw in range(state.level.shape[1]):
                for block, embedded, where in self._embed(stream, state.values[:, draw]):
                    groups.append(Group(stream=stream, block=block, clean=False, size=embedded.shape[1], draw=draw))
                    values.append(embedded)
                    positions.append(where)
                levels[groups[-1].level] = state.level[:, draw]
        tokens = self._by_expert(groups, values, positions, levels, prefix.conditions)
        out, _ = self.trunk(tokens, prefix.text, prefix.cache)
        return {stream: self._unembed(stream, tokens, out) for stream in noisy}

    # -- tokens in ----------------------------------------------------------------------------------------------------

    def _embed(self, stream: str, values: Array) -> list[tuple[int, Array, np.ndarray]]:
        """(block, tokens, positions) of each of a stream's groups in one draw."""
        values = values.astype(self.spec.dtype)
        if stream == "video":
            frames = self._embed_video(values)
            return [(block, frame, self._video_positions(block)) for block, frame in enumerate(frames, start=1)]
        tokens = self.action_in(values) + self.action_position[...].astype(values.dtype)
        times = np.zeros((self.interface.action_horizon, 3), np.float32)
        times[:, 0] = np.arange(self.interface.action_horizon)
        return [(1, tokens, times)]

    def _embed_video(self, latents: Float[Array, "B T V h w C"]) -> list[Float[Array, "B N D"]]:
        """Tokens of each frame: patches of all cameras in a row."""
        p = self.spec.patch_size
        patches = rearrange(latents, "b t v (r p) (c q) d -> b t v r c (p q d)", p=p, q=p)
        tokens = self.video_in(patches) + self.video_position[...].astype(latents.dtype)
        return list(jnp.moveaxis(rearrange(tokens, "b t v r c d -> b t (v r c) d"), 1, 0))

    def _video_positions(self, frame: int) -> Float[np.ndarray, "N 3"]:
        """(control step, row, column) of a frame's tokens, the same for every camera."""
        rows, columns = np.meshgrid(np.arange(self.grid[0]), np.arange(self.grid[1]), indexing="ij")
        time = np.full_like(rows, self.interface.frame_steps[frame])
        one_camera = np.stack([time, rows, columns], -1).reshape(-1, 3)
        return np.tile(one_camera, (self.interface.cameras, 1)).astype(np.float32)

    def _by_expert(
        self,
        groups: Sequence[Group],
        values: Sequence[Array],
        positions: Sequence[np.ndarray],
        levels: Mapping[str, Array],
        conditions: Mapping[str, Array],
    ) -> Tokens:
        """Adds each expert's modulation by the noise levels that its groups have."""
        modulation = {}
        for name, conditioning in self.conditioning.items():
            own = [group.level for group in groups if self.spec.stream(group.stream).expert == name]
            names = tuple(dict.fromkeys(own))
            if names:
                stacked = jnp.stack([levels[level] for level in names], 1)
                modulation[name] = Modulation(names, conditioning(stacked, conditions))
        return Tokens(tuple(groups), tuple(values), tuple(positions), modulation)

    # -- velocities out -----------------------------------------------------------------------------------------------

    def _unembed(self, stream: str, tokens: Tokens, out: Sequence[Array]) -> Float[Array, "B M ..."]:
        head = self.video_out if stream == "video" else self.action_out
        parts = [x for group, x in zip(tokens.groups, out, strict=True) if group.stream == stream]
        draws = max(group.draw for group in tokens.groups if group.stream == stream) + 1
        x = rearrange(jnp.stack(parts, 1), "b (m t) n d -> b m t n d", m=draws)
        velocity = head(x).astype(jnp.float32)
        if stream == "action":
            return velocity[:, :, 0]
        rows, columns = self.grid
        p = self.spec.patch_size
        return rearrange(
            velocity,
            "b m t (v r c) (p q d) -> b m t v (r p) (c q) d",
            v=self.interface.cameras, r=rows, c=columns, p=p, q=p,
        )  # fmt: skip

    def _width(self, stream: str) -> int:
        return self.spec.expert(self.spec.stream(stream).expert).width


def pool(text: Text) -> Float[Array, "B C"]:
    """Mean over the instruction's tokens."""
    count = jnp.maximum(text.mask.sum(1, keepdims=True), 1)
    return jnp.where(text.mask[..., None], text.features, 0.0).sum(1) / count


class Head(nnx.Module):
    """Normalise and project to a velocity; starts at zero, so that the first prediction is "no motion"."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs):
        self.project = Linear(width, outputs, ("embed", None), rngs, gain=0.0)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B O"]:
        return self.project(standardize(x))
