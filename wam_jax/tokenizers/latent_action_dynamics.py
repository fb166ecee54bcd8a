"""Inverse and forward dynamics over the tokens of a latent frame.

RepWAM (arXiv 2606.13674) gives both models as MLPs of 4 layers, 256 wide. It does not say what of a frame they see, nor
how 256 numbers become a matrix over all tokens. Our reading: the first half of the layers work on every token for
itself. The inverse model then gathers tokens by attention, and the rest of its layers work on that. The forward model
then tells every token the mean of all, and the rest of its layers work on that; its matrix is a product of queries and
keys. So no size grows with the grid.

``N`` tokens are those of one latent frame: cameras first, then rows, then columns. ``A`` is the size of a latent
action.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.embeddings import grid_positions
from wam_jax.nn.module import Linear
from wam_jax.nn.rotary import rotate

Grid = tuple[int, int, int]  # cameras, rows, columns
Change = tuple[Float[Array, "B N C"], Float[Array, "B N C"]]  # tokens as they are moved, and what is added to them

GATHER_HEADS = 8
START_PEAK = 2.0  # queries and keys begin as this, which puts 0.95 of a row of an 8 x 8 grid's K on its own token


class TokenLayers(nnx.Module):
    """Linear layers with tanh-GELU, the same for every token; where a token is enters with the first.

    A token knows its camera, and with ``places`` its row and column too.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, grid: Grid, places: bool, rngs: nnx.Rngs):
        self.grid = grid
        self.first = Linear(inputs, hidden, (None, "embed"), rngs)
        position = grid_positions(rngs.params(), *(grid if places else (grid[0], 1, 1)), hidden)
        self.position = nnx.Param(position, axes=(None, None, None, "embed"))
        self.rest = nnx.List([Linear(hidden, hidden, ("embed", None), rngs) for _ in range(layers - 1)])

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B N D"]:
        x = self.first(x)
        x = gelu(x + jnp.broadcast_to(self.position[...], (*self.grid, x.shape[-1])).reshape(x.shape[1:]))
        for layer in self.rest:
            x = gelu(layer(x))
        return x


class InverseDynamics(nnx.Module):
    """q(before, after): what happened between two frames, as a few numbers.

    What happens, happens to few tokens: a mean over all drowns it, so each of ``GATHER_HEADS`` parts of the features is
    gathered with weights of its own.
    """

    def __init__(self, grid: Grid, channels: int, outputs: int, hidden: int, layers: int, rngs: nnx.Rngs):
        self.tokens = TokenLayers(2 * channels, hidden, layers // 2, grid, True, rngs)
        self.gather = Linear(hidden, GATHER_HEADS, ("embed", None), rngs)
        between = layers - layers // 2 - 1
        self.frame = nnx.List([Linear(hidden, hidden, ("embed", None), rngs) for _ in range(between)])
        self.out = Linear(hidden, outputs, ("embed", None), rngs)

    def __call__(self, before: Float[Array, "B N C"], after: Float[Array, "B N C"]) -> Float[Array, "B O"]:
        tokens = self.tokens(jnp.concatenate([before, after], -1))
        weights = jax.nn.softmax(self.gather(tokens), 1)
        parts = rearrange(tokens, "b n (k d) -> b n k d", k=GATHER_HEADS)
        x = jnp.einsum("bnk,bnkd->bkd", weights, parts).reshape(len(tokens), -1)
        for layer in self.frame:
            x = gelu(layer(x))
        return self.out(x)


class ForwardFeatures(nnx.Module):
    """Features of every token from which its future is read: all but the last layer of a forward model."""

    def __init__(self, grid: Grid, channels: int, size: int, hidden: int, layers: int, places: bool, rngs: nnx.Rngs):
        self.tokens = TokenLayers(channels + size, hidden, layers // 2, grid, places, rngs)
        self.context = Linear(hidden, hidden, ("embed", None), rngs)
        between = layers - layers // 2 - 1
        self.rest = nnx.List([Linear(hidden, hidden, ("embed", None), rngs) for _ in range(between)])

    def __call__(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Float[Array, "B N D"]:
        action = jnp.broadcast_to(latent_action[:, None], (*before.shape[:2], latent_action.shape[-1]))
        x = self.tokens(jnp.concatenate([before, action], -1))
        x = x + self.context(x.mean(1, keepdims=True))
        for layer in self.rest:
            x = gelu(layer(x))
        return x


class Direct(nnx.Module):
    """A forward model that adds to every token, which knows its place: tokens stay where they are."""

    def __init__(self, grid: Grid, channels: int, size: int, hidden: int, layers: int, rngs: nnx.Rngs):
        self.features = ForwardFeatures(grid, channels, size, hidden, layers, True, rngs)
        self.residual = Linear(hidden, channels, ("embed", None), rngs, gain=0.1)

    def __call__(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Change:
        return before, self.residual(self.features(before, latent_action))


class Transport(nnx.Module):
    """RepWAM's forward model: K z + δ, where K moves tokens and δ is what moving does not explain.

    K = softmax(q kᵀ / √d) over the tokens of the same camera: tokens of two pictures have no places in common, so what
    one camera tells of another goes by δ. Queries and keys are turned by their row and column (2-D rotary positions),
    so that their product is a function of the displacement. It has as many frequencies as there are rows and columns,
    π (j + 1/2) / rows: cos summed over these is 0 at every whole displacement but 0. So a peak at any displacement can
    be had, as sharp as wanted: an exact translation, of a whole picture or of some tokens. At the start it is at 0,
    and the prediction near the present.

    Tokens do not know their places here, only how far apart they are. A latent action then has to tell how things move
    and cannot tell where they end: the same motion is the same latent action wherever it is.
    """

    def __init__(self, grid: Grid, channels: int, size: int, hidden: int, layers: int, rngs: nnx.Rngs):
        self.grid = grid
        self.features = ForwardFeatures(grid, channels, size, hidden, layers, False, rngs)
        self.residual = Linear(hidden, channels, ("embed", None), rngs, gain=0.1)
        self.query, self.key = (_peaked(hidden, grid[1] + grid[2], rngs) for _ in range(2))

    def __call__(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Change:
        features = self.features(before, latent_action)
        tokens = rearrange(before, "b (v n) c -> b v n c", v=self.grid[0])
        moved = jnp.einsum("bvij,bvjc->bvic", self._matrix(features), tokens)
        return moved.reshape(before.shape), self.residual(features)

    def matrix(self, before: Float[Array, "B N C"], latent_action: Float[Array, "B A"]) -> Float[Array, "B V n n"]:
        """K, a block a camera: from which tokens (last axis) each token comes; rows sum to 1."""
        return self._matrix(self.features(before, latent_action))

    def _matrix(self, features: Float[Array, "B N D"]) -> Float[Array, "B V n n"]:
        table = displacement_table(*self.grid[1:])
        turned = [
            rotate(rearrange(linear(features), "b (v n) d -> b n v d", v=self.grid[0]), table)
            for linear in (self.query, self.key)
        ]
        logits = jnp.einsum("bivd,bjvd->bvij", *turned) / np.sqrt(turned[0].shape[-1])
        return jax.nn.softmax(logits.astype(jnp.float32), -1).astype(features.dtype)


def _peaked(inputs: int, frequencies: int, rngs: nnx.Rngs) -> Linear:
    """Queries or keys that begin as ones: the product of two such peaks at displacement 0."""
    linear = Linear(inputs, 2 * frequencies, ("embed", None), rngs, gain=0.5)
    linear.bias = nnx.Param(START_PEAK * (jnp.arange(2 * frequencies) < frequencies), axes=(None,))
    return linear


def displacement_table(rows: int, columns: int) -> tuple[Float[np.ndarray, "n F"], Float[np.ndarray, "n F"]]:
    """Cosines and sines by which every token of a picture is turned, F = rows + columns: by its row, by its column."""
    row, column = (x.reshape(-1, 1) for x in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    turns = [np.pi * (np.arange(size) + 0.5) / size * place for size, place in ((rows, row), (columns, column))]
    angles = np.concatenate(turns, -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """The tanh form, as everywhere here."""
    return jax.nn.gelu(x, approximate=True)
