"""The one diffusion transformer: experts side by side, joined by attention as the visibility rule says."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.backends import RESIDUALS
from wam_jax.nn.block import DiTBlock
from wam_jax.nn.module import layer_slice, stack
from wam_jax.types import Text
from wam_jax.wam.lens import Shown
from wam_jax.wam.spec import Bridge, Expert, Spec
from wam_jax.wam.stretch import PassState, Stretch, StretchRun, stretches
from wam_jax.wam.tokens import Cache, Entry, Tokens

# What the backward pass finds kept, by ``Spec.remat``; "attention" keeps splash's output and log-sums.
_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(RESIDUALS),
    "full": None,
}


def tapped_layers(bridge: Bridge, source_layers: int, own_layers: int) -> tuple[int, ...]:
    """The source's layer that each own layer reads: AGRA's round(j (M - 1) / (N - 1)), or one for all."""
    if isinstance(bridge.layers, int):
        return (bridge.layers,) * own_layers
    if own_layers == 1:
        return (source_layers - 1,)
    return tuple(round(j * (source_layers - 1) / (own_layers - 1)) for j in range(own_layers))


class Trunk(nnx.Module):
    """Stacked DiT blocks, one stack an expert."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.spec = spec
        self.blocks = nnx.Dict({e.name: stack(self._make_block(e), spec.layers(e), rngs) for e in spec.experts})

    def _make_block(self, expert: Expert) -> Callable[[nnx.Rngs], DiTBlock]:
        spec = self.spec
        return lambda rngs: DiTBlock(
            expert.width,
            expert.ffn_width,
            spec.num_heads,
            spec.head_dim,
            rngs,
            own_attention=expert.attention_of is None,
            text=expert.text,
            image=expert.image_width > 0,
            bridge=spec.expert(expert.bridge.source).width if expert.bridge else None,
            output_gain=0.5 / np.sqrt(spec.layers(expert) / 4),
        )

    def __call__(
        self,
        tokens: Tokens,
        text: Mapping[str, Text],
        cache: Cache = Cache(),
        keep: bool = False,
        image: Mapping[str, Float[Array, "B I D"]] | None = None,
    ) -> tuple[tuple[Float[Array, "B n D"], ...], Cache, Shown]:
        """Runs all layers.

        Args:
          tokens: of the groups to run.
          text: instruction features at each expert's width, for cross-attention.
          cache: what these groups may also see.
          keep: return what these groups leave for later passes.
          image: tokens of a given image at each expert's width, for cross-attention beside the text.

        Returns:
          each group's tokens after the last layer, a cache of these groups (empty unless ``keep``), and what its
          lens shows.
        """
        state = PassState(tokens, cache)
        for stretch in stretches(self.spec):
            self._run(stretch, state, text, image or {}, keep)
        hidden = tuple(state.x[group] for group in tokens.groups)
        shown = state.shown()
        if not keep:
            return hidden, Cache(), shown
        entries = tuple(
            Entry(
                state.kept[group],
                state.bridged[group],
                x,
                episode=state.key_episode[group],
                positions=None if tokens.lens is None else where,
                layers=shown.layers.get(group),
            )
            for group, x, where in zip(tokens.groups, hidden, tokens.positions, strict=True)
        )
        return hidden, Cache(tokens.groups, entries), shown

    def _run(self, stretch: Stretch, state: PassState, text: Mapping[str, Text], image: Mapping, keep: bool) -> None:
        """One stretch: scans its layers, and notes in ``state`` what they leave."""
        members = [i for i, g in enumerate(state.tokens.groups) if self.spec.stream(g.stream).expert in stretch.start]
        if not members:
            return
        run = StretchRun(self.spec, stretch, state, members)
        graphs, params = {}, {}
        for name in stretch.start:
            graphs[name], arrays = layer_slice(self.blocks[name])
            params[name] = jax.tree.map(lambda a, n=name: a[stretch.start[n] : stretch.stop[n]], arrays)

        def layer(x, inputs):
            layer_params, cached, bridged = inputs
            blocks = {name: nnx.merge(graphs[name], layer_params[name]) for name in graphs}
            return run.layer(blocks, x, text, image, cached, bridged, keep)

        if self.spec.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT[self.spec.remat])
        inputs = (params, run.cached, run.bridged)
        unroll = min(self.spec.unroll, stretch.length)
        x, (kept, taps, parallel, attention) = jax.lax.scan(layer, run.start(), inputs, unroll=unroll)
        run.finish(x, kept, parallel)
        run.show(taps, attention)
        self._tap(stretch, run, taps, state)

    def _tap(self, stretch: Stretch, run: StretchRun, taps: Mapping, state: PassState) -> None:
        """Projects tapped hidden states to keys and values for every expert that reads them later."""
        for reader in self.spec.experts:
            if not reader.bridge or reader.bridge.parallel or reader.bridge.source not in stretch.start:
                continue
            layers = np.array(tapped_layers(reader.bridge, self.spec.num_layers, self.spec.layers(reader)))
            graph, arrays = layer_slice(self.blocks[reader.name])
            project = jax.vmap(lambda p, h, graph=graph: nnx.merge(graph, p).bridge.keys_values(h))
            for lane in run.lanes:
                if lane.expert != reader.bridge.source:
                    continue
                hidden = taps[lane.name][layers]
                hidden = jax.lax.stop_gradient(hidden) if reader.bridge.detach else hidden
                keys, values = project(arrays, hidden)
                for group, *pair in zip(lane.groups, lane.split(keys, 2), lane.split(values, 2), strict=True):
                    state.bridged[group][reader.name] = tuple(pair)
