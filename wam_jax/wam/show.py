"""A spec to look at: as a table of words, and as a picture of who sees whom."""

from pathlib import Path

import jax
import numpy as np

from wam_jax.nn.module import define
from wam_jax.wam.layout import Layout
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Expert, Interface, Mode, Spec, Stream
from wam_jax.wam.visibility import visible_pairs

COLORS = {"video": "#4477aa", "action": "#cc6677", "state": "#999933", "depth": "#44aa99", "value": "#aa4499"}


def parameters_by_expert(spec: Spec, interface: Interface) -> dict[str, int]:
    """Scalars of each expert's blocks and of everything else ("maps": input, output, text and noise-level maps).

    By shape evaluation: nothing is allocated.
    """
    shapes = define(lambda rngs: WorldActionModel(spec, interface, rngs)).shapes()
    counts = {name: _count(blocks) for name, blocks in shapes["trunk"]["blocks"].items()}
    return {**counts, "maps": _count(shapes) - sum(counts.values())}


def parameters_of_expert(spec: Spec, interface: Interface, name: str) -> int:
    """Blocks, text projection, noise-level conditioning and stream maps of one expert."""
    shapes = define(lambda rngs: WorldActionModel(spec, interface, rngs)).shapes()
    maps = [shapes["maps"][s.name] for s in spec.streams if s.expert == name and s.name in shapes["maps"]]
    parts = [shapes["trunk"]["blocks"][name], shapes["conditioning"][name], shapes["text_in"].get(name, {}), *maps]
    return sum(_count(part) for part in parts)


def _count(tree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def coupling(spec: Spec) -> str:
    """How the experts share weights and attention, in words."""
    words = []
    for expert in spec.experts:
        if expert.bridge:
            taps = {"spread": "spread layers", "parallel": "each layer"}.get(str(expert.bridge.layers))
            cut = ", detached" if expert.bridge.detach else ""
            words.append(
                f"{expert.name} reads {taps or f'layer {expert.bridge.layers}'} of {expert.bridge.source}{cut}"
            )
        elif expert.branch_of:
            words.append(f"{expert.name} branches off {expert.branch_of}")
        elif expert.attention_of:
            words.append(f"{expert.name} shares attention of {expert.attention_of}")
    if words:
        return "; ".join(words)
    return "unified" if len(spec.experts) == 1 else "mixture: " + ", ".join(e.name for e in spec.experts)


def noise(spec: Spec) -> str:
    """How levels are drawn in training, in words."""
    kind = type(spec.noise).__name__.lower()
    drawn = {s.name: _plain(s.noise.distribution) for s in spec.streams if s.noise}
    if len(set(drawn.values())) == 1:
        return f"{kind} {next(iter(drawn.values()))}"
    return f"{kind} " + ", ".join(f"{name} {text}" for name, text in drawn.items())


def sampling(mode: Mode) -> str:
    """A mode's stages, in words: ``video→0.8, action (10) then video (40)``."""
    stages = []
    for stage in mode.stages:
        moves = ", ".join(
            f"{m.stream}{f'→{m.to:g}' if m.to else ''}{f'/{m.steps}' if m.steps else ''}" for m in stage.moves
        )
        stages.append(f"{moves} ({stage.steps}{' heun' if stage.solver == 'heun' else ''})")
    words = " then ".join(stages)
    words += f"; {', '.join(mode.given)} given" if mode.given else ""
    return words + (f"; {', '.join(mode.missing)} at noise" if mode.missing else "")


def spec_rows(spec: Spec, interface: Interface) -> list[tuple[str, str]]:
    """The whole table of one spec, a row a choice."""
    layout = Layout(spec, interface)
    counts = parameters_by_expert(spec, interface)
    rows = [(f"stream {s.name}", _stream(spec, s, layout)) for s in spec.streams]
    rows += [(f"expert {e.name}", _expert(spec, e)) for e in spec.experts]
    rows += [("coupling", coupling(spec)), ("visibility", str(spec.visibility)), ("noise", noise(spec))]
    for mode in spec.modes:
        dropped = layout.droppable(mode.name)
        rows.append(
            (f"mode {mode.name}", sampling(mode) + (f"; actions need no {', '.join(dropped)}" if dropped else ""))
        )
    blocks = f"{layout.num_blocks} of {layout.frames_per_block} frames" if spec.chunk_frames else "all of the future"
    rows.append(("blocks", blocks + (f", history of {spec.history}" if layout.autoregressive else "")))
    needed = layout.needed(spec.generated)
    index = [layout.groups.index(group) for group in needed]
    tokens, pairs = sum(g.size for g in needed), visible_pairs(needed, layout.visible[np.ix_(index, index)])
    rows.append(("tokens", f"{tokens:,} in training; attention sees {pairs / max(1, tokens) ** 2:.0%} of all pairs"))
    rows.append(("parameters", ", ".join(f"{name} {count / 1e6:,.2f}M" for name, count in counts.items())))
    return rows


def _stream(spec: Spec, stream: Stream, layout: Layout) -> str:
    blocks = [g.size for g in layout.groups if g.stream == stream.name]
    words = [stream.kind, stream.role, f"{max(blocks)} tokens a block", f"in {stream.expert}"]
    words += [f"loss {stream.loss_weight:g}"] if stream.role != "context" else []
    words += ["diffusion head"] if stream.head == "diffusion" else []
    words += ["maps per embodiment"] if stream.per_embodiment else []
    words += ["injected into a latent frame"] if stream.injected else []
    words += [f"data of {stream.data_of}"] if stream.data_of else []
    return ", ".join(words)


def _expert(spec: Spec, expert: Expert) -> str:
    words = f"{spec.layers(expert)} layers, width {expert.width}, {spec.num_heads} heads of {spec.head_dim}, "
    words += f"feed-forward {expert.ffn_width}"
    conditions = ("text tokens", *(f"{c} in adaLN" for c in expert.conditions)) if expert.text else expert.conditions
    return words + (f"; {', '.join(conditions)}" if conditions else "")


def _plain(distribution) -> str:
    fields = ", ".join(
        f"{value:g}" if isinstance(value, float) else _plain(value) for value in vars(distribution).values()
    )
    return f"{type(distribution).__name__.lower()}({fields})" if fields else type(distribution).__name__.lower()


def draw_visibility(spec: Spec, interface: Interface, path: Path) -> None:
    """Draws who sees whom, group by group, of all groups that training runs: rows attend to columns.

    Shaded cells are visible, by the colour of the stream that attends; a dot marks what is computed once and cached.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layout = Layout(spec, interface)
    needed = layout.needed(spec.generated)
    order = sorted(needed, key=lambda g: (not g.clean, g.block, [s.name for s in spec.streams].index(g.stream)))
    index = [layout.groups.index(group) for group in order]
    visible = layout.visible[np.ix_(index, index)]
    size = 1.6 + 0.34 * len(order)
    figure, axes = pyplot.subplots(figsize=(size + 1.2, size), dpi=130)
    palette = {s.name: COLORS.get(s.kind, "#888888") for s in spec.streams}
    for row, group in enumerate(order):
        for column in np.flatnonzero(visible[row]):
            axes.add_patch(pyplot.Rectangle((float(column), row), 0.94, 0.94, color=palette[group.stream]))
            if group in layout.context:
                axes.plot(column + 0.47, row + 0.47, ".", color="white", markersize=3)
    labels = [f"{group}  ({group.size})" for group in order]
    places = np.arange(len(order)) + 0.5
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_xticks(places, [str(g) for g in order], fontsize=7, rotation=90)
    axes.xaxis.tick_top()
    axes.set(xlim=(0, len(order)), ylim=(len(order), 0), aspect="equal")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_color("#cccccc")
    for edge in range(1, len(order)):
        axes.axhline(edge, color="#eeeeee", linewidth=0.5, zorder=0)
        axes.axvline(edge, color="#eeeeee", linewidth=0.5, zorder=0)
    axes.set_title(f"{spec.name}: {spec.visibility}", fontsize=9, pad=12)
    figure.text(0.01, 0.01, "rows attend to columns (tokens); dots: computed once", fontsize=6, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
