"""From a stream's data to tokens and back: one small module a kind of data."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from wam_jax.nn.embeddings import SINUSOID_CHANNELS, grid_positions, sinusoid
from wam_jax.nn.module import Linear, normal, standardize
from wam_jax.wam.layout import Layout
from wam_jax.wam.spec import KINDS, Stream


class Projection(nnx.Module):
    """Linear; or one linear map an embodiment."""

    def __init__(self, inputs: int, outputs: int, axes: tuple, rngs: nnx.Rngs, embodiments: int = 0, gain: float = 1.0):
        self.embodiments = embodiments
        if not embodiments:
            self.linear = Linear(inputs, outputs, axes, rngs, gain=gain)
            return
        kernel = normal(inputs, gain)(rngs.params(), (embodiments, inputs, outputs))
        self.kernel = nnx.Param(kernel, axes=(None, *axes))
        self.bias = nnx.Param(jnp.zeros((embodiments, outputs)), axes=(None, axes[1]))

    def __call__(self, x: Float[Array, "B *N I"], embodiment: Int[Array, "B"]) -> Float[Array, "B *N O"]:
        if not self.embodiments:
            return self.linear(x)
        kernel, bias = (p[...][embodiment].astype(x.dtype) for p in (self.kernel, self.bias))
        return jnp.einsum("b...i,bio->b...o", x, kernel) + bias.reshape(len(bias), *[1] * (x.ndim - 2), -1)


class Head(nnx.Module):
    """Normalise, modulate by the noise level and project (Wan's head); starts at zero: "no motion"."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs, embodiments: int = 0):
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * 0.02, axes=(None, "embed"))
        self.project = Projection(width, outputs, ("embed", None), rngs, embodiments, gain=0.0)

    def __call__(
        self, x: Float[Array, "B N D"], level: Float[Array, "B D"], embodiment: Int[Array, "B"]
    ) -> Float[Array, "B N O"]:
        shift, scale = (level[:, None] + self.modulation[...][i] for i in (0, 1))
        y = standardize(x) * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)
        return self.project(y, embodiment).astype(jnp.float32)


class DiffusionHead(nnx.Module):
    """A small network that denoises each token's data by itself, given what the trunk made of its query.

    After MAR (arXiv 2406.11838, section 3.2): residual MLP blocks under adaLN of noise level and condition.
    """

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs, blocks: int = 2):
        self.data_in = Linear(outputs, width, (None, "embed"), rngs)
        self.level_in = Linear(SINUSOID_CHANNELS, width, (None, "embed"), rngs)
        self.condition_in = Linear(width, width, ("embed", None), rngs)
        self.modulations = nnx.List([Linear(width, 3 * width, ("embed", "mlp"), rngs, gain=0.1) for _ in range(blocks)])
        self.ups = nnx.List([Linear(width, width, ("embed", "mlp"), rngs) for _ in range(blocks)])
        self.downs = nnx.List([Linear(width, width, ("mlp", "embed"), rngs, gain=0.5) for _ in range(blocks)])
        self.out = Linear(width, outputs, ("embed", None), rngs, gain=0.0)

    def __call__(
        self, hidden: Float[Array, "B N D"], noisy: Float[Array, "B M N O"], level: Float[Array, "B M"]
    ) -> Float[Array, "B M N O"]:
        x = self.data_in(noisy.astype(hidden.dtype))
        condition = self.condition_in(standardize(hidden))[:, None]
        condition = jax.nn.silu(condition + self.level_in(sinusoid(level).astype(hidden.dtype))[:, :, None])
        for modulation, up, down in zip(self.modulations, self.ups, self.downs, strict=True):
            shift, scale, gate = jnp.split(modulation(condition), 3, -1)
            x = x + (1 + gate) * down(jax.nn.silu(up(standardize(x) * (1 + scale) + shift)))
        return self.out(standardize(x)).astype(jnp.float32)


class StreamMap(nnx.Module):
    """Input and output maps of one stream.

    ``embed`` makes tokens of a block's data, ``flatten`` puts that data in the order of the tokens (what a head
    predicts), ``unflatten`` is its inverse.
    """

    def __init__(self, stream: Stream, layout: Layout, rngs: nnx.Rngs):
        spec, interface = layout.spec, layout.interface
        self.stream, self.layout, self.kind = stream, layout, KINDS[stream.kind]
        width = spec.expert(stream.expert).width
        self.missing = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)), axes=("embed",))
        if self.kind == "learned":
            self.queries = nnx.Param(_queries(rngs, stream.tokens, width), axes=(None, "embed"))
            return
        if self.kind != "features" and (stream.role == "predicted" or stream.head == "diffusion"):
            self.queries = nnx.Param(_queries(rngs, layout.size(stream, 1), width), axes=(None, "embed"))
        embodiments = interface.embodiments if stream.per_embodiment else 0
        given = stream.given_channels * spec.patch_size**2
        self.project = Projection(self.values_per_token + given, width, (None, "embed"), rngs, embodiments)
        if spec.learned_positions and (self.kind == "patches" or stream.injected):
            cameras = 1 if stream.injected else interface.cameras
            self.position = nnx.Param(
                grid_positions(rngs.params(), cameras, *layout.grid, width), axes=(None, None, None, "embed")
            )
        elif self.kind == "steps":
            # Blocks of changing length share the positions of one frame's actions; rotary ones tell the frames apart.
            frames = layout.frames_per_block if spec.chunk_draws else 1
            self.position = nnx.Param(_queries(rngs, layout.size(stream, 1) // frames, width), axes=(None, "embed"))
        if stream.role == "context":
            return
        if stream.head == "diffusion":
            self.diffusion = DiffusionHead(width, self.values_per_token, rngs)
        else:
            self.head = Head(width, self.values_per_token, rngs, embodiments)

    @property
    def values_per_token(self) -> int:
        interface = self.layout.interface
        patch = interface.latent_shape[-1] * self.layout.spec.patch_size**2
        if self.stream.injected or self.kind == "patches":
            return patch
        return self.layout.data_shape(self.stream)[-1]

    def embed(self, values: Float[Array, "B t ..."], embodiment: Int[Array, "B"]) -> Float[Array, "B N D"]:
        """Tokens of one block; its values have the given channels last, if the stream has any."""
        tokens = self.project(self.flatten(values), embodiment)
        if hasattr(self, "position"):
            position = self.position[...].astype(tokens.dtype)
            position = position.reshape(-1, position.shape[-1])
            tokens = tokens + jnp.tile(position, (tokens.shape[1] // len(position), 1))
        return tokens

    def flatten(self, values: Float[Array, "B t ..."]) -> Float[Array, "B N O"]:
        """A block's data, row by row as its tokens lie."""
        p = self.layout.spec.patch_size
        if self.stream.injected:
            return self._inject(values)
        if self.kind == "patches":
            return rearrange(values, "b t v (r p) (c q) d -> b (t v r c) (p q d)", p=p, q=p)
        return values

    def unflatten(self, rows: Float[Array, "B N O"]) -> Float[Array, "B t ..."]:
        """The inverse of ``flatten``; of an injected stream, the mean over its copies."""
        if self.stream.injected:
            return self._extract(rows)
        if self.kind == "patches":
            (r, c), p, cameras = self.layout.grid, self.layout.spec.patch_size, self.layout.interface.cameras
            return rearrange(rows, "b (t v r c) (p q d) -> b t v (r p) (c q) d", v=cameras, r=r, c=c, p=p, q=p)
        return rows

    def present(self, mask: Array) -> Array:
        """Which tokens of a block have data, from the block's mask: [B, t, V] of frames, [B, t] otherwise."""
        if self.stream.injected:
            return jnp.broadcast_to(mask.any(1, keepdims=True), (len(mask), self.layout.size(self.stream, 1)))
        if self.kind == "patches":
            return jnp.repeat(mask.reshape(len(mask), -1), self.layout.grid[0] * self.layout.grid[1], axis=1)
        return mask

    def positions(self, block: int) -> Float[np.ndarray, "N 3"]:
        """(control step, row, column) of a block's tokens, in units of the rotary positions."""
        steps = self.layout.interface.frame_steps
        if self.kind in ("features", "learned"):
            return np.zeros((self.layout.size(self.stream, 0), 3), np.float32)
        start, stop = self.layout.span(self.stream, block)
        if self.kind == "patches":
            where = np.concatenate([self._grid(steps[frame]) for frame in range(start, stop)])
        elif self.stream.injected:
            where = self._grid(steps[block * self.layout.frames_per_block])[: self.layout.size(self.stream, block)]
        else:
            times = steps if self.kind == "frames" or self.stream.kind == "latent_action" else range(stop)
            where = np.zeros((stop - start, 3), np.float32)
            where[:, 0] = np.array([times[i] for i in range(start, stop)])
        return where * np.array([self.layout.time_scale, 1, 1], np.float32)

    def _grid(self, time: float) -> Float[np.ndarray, "N 3"]:
        rows, columns = np.meshgrid(*(np.arange(size) for size in self.layout.grid), indexing="ij")
        cameras = range(self.layout.interface.cameras)
        apart = 0 if self.layout.spec.learned_positions else self.layout.grid[1]
        views = [np.stack([np.full_like(rows, time), rows, columns + apart * v], -1).reshape(-1, 3) for v in cameras]
        return np.concatenate(views).astype(np.float32)

    # -- injection: data written again and again into a latent frame, read out as the mean of its copies --------------

    def _inject(self, values: Float[Array, "B t A"]) -> Float[Array, "B N O"]:
        flat = values.reshape(len(values), -1)
        copies = -(-self._room // flat.shape[1])
        written = jnp.tile(flat, (1, copies))[:, : self._room]
        return written.reshape(len(values), -1, self.values_per_token)

    def _extract(self, rows: Float[Array, "B N O"]) -> Float[Array, "B t A"]:
        start, stop = self.layout.span(self.stream, 1)
        size = (stop - start) * self.layout.data_shape(self.stream)[-1]
        copies = self._room // size
        flat = rows.reshape(len(rows), -1)[:, : copies * size].reshape(len(rows), copies, size)
        return flat.mean(1).reshape(len(rows), stop - start, -1)

    @property
    def _room(self) -> int:
        """Values in one camera's latent frame.

        Raises:
          ValueError: if a block's data is larger.
        """
        room = int(np.prod(self.layout.interface.latent_shape))
        start, stop = self.layout.span(self.stream, 1)
        if (stop - start) * self.layout.data_shape(self.stream)[-1] > room:
            raise ValueError(f"stream {self.stream.name!r} does not fit into a latent frame of {room} values")
        return room


def _queries(rngs: nnx.Rngs, count: int, width: int) -> Array:
    return 0.3 * jax.random.normal(rngs.params(), (count, width))
