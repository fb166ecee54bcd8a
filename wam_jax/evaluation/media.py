"""Films, pictures and charts of a report: numpy arrays in, bytes of WebP or PNG out.

Films are animated WebP: every browser plays it, and Pillow writes it without ffmpeg. Charts have a transparent
background and neutral ink, so that they read on a light page and on a dark one. Nothing here has global state.
"""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from wam_jax.evaluation.statistics import Mean, Rate

Frames = UInt8[np.ndarray, "*T H W 3"]
Color = tuple[int, int, int]

# Okabe and Ito's palette: told apart with any kind of colour vision.
SUCCESS: Color = (0, 158, 115)
FAILURE: Color = (213, 94, 0)
_SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c00", "#7a7a7a")
_INK = "#7f858d"  # contrast about 4:1 on white and on near-black
_BAND: Color = (24, 26, 30)
_BAND_TEXT: Color = (240, 240, 240)
_HEAT = "inferno"
_CHART_INCHES = (5.8, 3.2)  # small, so that its text stays legible on a phone
_CHART_DPI = 200


def enlarge(frames: Frames, min_height: int = 192) -> Frames:
    """Small frames repeated pixel by pixel, by the smallest whole factor that reaches ``min_height``."""
    factor = max(math.ceil(min_height / frames.shape[-3]), 1)
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def tile(frames: UInt8[np.ndarray, "N H W 3"], columns: int | None = None, gap: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """Images in a grid, row by row; nearly square unless ``columns`` says otherwise. Gaps and empty cells are white.

    Raises:
      ValueError: there is no image.
    """
    count, height, width, _ = frames.shape
    if count == 0:
        raise ValueError("no image to tile; give at least one")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    cells[:count, :height, :width] = frames
    grid = rearrange(cells, "(r c) h w rgb -> (r h) (c w) rgb", r=rows)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap]


def caption(frames: Frames, text: str) -> Frames:
    """Frames below a band that carries ``text`` (an instruction, a label), wrapped to their width."""
    width = frames.shape[-2]
    band = _text_band(text, width, font_size=int(np.clip(width / 16, 11, 18)))
    return np.concatenate([np.broadcast_to(band, (*frames.shape[:-3], *band.shape)), frames], axis=-3)


def side_by_side(panels: Mapping[str, UInt8[np.ndarray, "T H W 3"]], min_height: int = 192) -> Frames:
    """Films next to each other, each below its label (``camera``, ``imagined``, ``real``).

    Panels are brought to one height by repeating pixels; a film that ends early holds its last frame.

    Raises:
      ValueError: there is no panel, or one has no frame.
    """
    if not panels or min(len(frames) for frames in panels.values()) == 0:
        raise ValueError(f"nothing to show side by side in {sorted(panels)}; give every panel at least one frame")
    length = max(len(frames) for frames in panels.values())
    height = max(enlarge(frames[:1], min_height).shape[-3] for frames in panels.values())
    labelled = [caption(_hold(_to_height(frames, height), length), label) for label, frames in panels.items()]
    tallest = max(frames.shape[-3] for frames in labelled)  # a label may take two lines
    return np.concatenate([_pad_top(frames, tallest) for frames in labelled], axis=-2)


def border(frames: Frames, color: Color, width: int = 4) -> Frames:
    """Frames inside a coloured border; ``SUCCESS`` and ``FAILURE`` are the colours of an episode's outcome."""
    shape = (*frames.shape[:-3], frames.shape[-3] + 2 * width, frames.shape[-2] + 2 * width, 3)
    framed = np.broadcast_to(np.asarray(color, np.uint8), shape).copy()
    framed[..., width:-width, width:-width, :] = frames
    return framed


def picture(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A PNG, lossless."""
    return _encode([image], "PNG", optimize=True)


def film(frames: UInt8[np.ndarray, "T H W 3"], fps: float, quality: int = 80) -> bytes:
    """An animated WebP that loops; it stands still for a second at its end.

    Args:
      frames: what to show; put through ``enlarge`` first where it is small.
      fps: frames a second.
      quality: 0 to 100, WebP's lossy quality.

    Raises:
      ValueError: there is no frame.
    """
    if len(frames) == 0:
        raise ValueError("a film of no frames; give at least one")
    frame_ms = round(1000 / fps)
    durations = [frame_ms] * (len(frames) - 1) + [max(frame_ms, 1000)]
    return _encode(frames, "WEBP", quality=quality, method=4, duration=durations, loop=0)


def curve(series: Mapping[str, Sequence[tuple[float, float]]], title: str, xlabel: str, ylabel: str) -> bytes:
    """A line chart as PNG: one line a name, through its (x, y) points."""
    figure, axes = _chart(title, _CHART_INCHES)
    for index, (name, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True) if points else ((), ())
        marker = "o" if len(points) <= 12 else None
        axes.plot(x, y, label=name, color=_SERIES[index % len(_SERIES)], linewidth=2, marker=marker, markersize=4)
    axes.set_xlabel(xlabel, color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    axes.grid(axis="y", color=_INK, alpha=0.25, linewidth=0.8)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return _save_chart(figure)


def bars(rates: Mapping[str, Rate | Mean], title: str, xlabel: str = "success") -> bytes:
    """A bar chart of rates with their 95% intervals as PNG: one horizontal bar a name, the first on top."""
    figure, axes = _chart(title, (_CHART_INCHES[0], 1.1 + 0.42 * len(rates)))
    for row, rate in enumerate(rates.values()):
        low, high = rate.ci95
        axes.barh(row, rate.rate, height=0.62, color=_SERIES[0], alpha=0.4, linewidth=0)
        axes.plot([low, high], [row, row], color=_SERIES[0], linewidth=3, solid_capstyle="butt")
        axes.text(1.02, row, str(rate), va="center", color=_INK, fontsize=9)
    axes.set_yticks(range(len(rates)), list(rates))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(xlabel, color=_INK)
    axes.grid(axis="x", color=_INK, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    return _save_chart(figure)


def histogram(series: Mapping[str, Sequence[float]], title: str, xlabel: str) -> bytes:
    """How often each value occurs, as PNG: the names over one another, in the same bins."""
    figure, axes = _chart(title, _CHART_INCHES)
    everything = np.concatenate([np.asarray(values, float) for values in series.values()])
    edges = np.histogram_bin_edges(everything, bins=min(30, max(1, len(np.unique(everything)))))
    for index, (name, values) in enumerate(series.items()):
        axes.hist(values, edges.tolist(), label=name, color=_SERIES[index % len(_SERIES)], alpha=0.55)
    axes.set_xlabel(xlabel, color=_INK)
    axes.set_ylabel("count", color=_INK)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return _save_chart(figure)


def cut_signals(signals: Sequence[Float[np.ndarray, "T D"]], cuts: Sequence[Sequence[int]], title: str) -> bytes:
    """Signals under one another as PNG, with a line at every cut."""
    figure, axes = _chart(title, (_CHART_INCHES[0], 0.8 + 0.7 * len(signals)))
    for row, (signal, own) in enumerate(zip(signals, cuts, strict=True)):
        low, high = float(signal.min()), float(signal.max())
        axes.plot(0.8 * (signal - low) / max(high - low, 1e-9) - row, color=_SERIES[0], linewidth=1.2)
        axes.vlines(list(own), -row - 0.05, -row + 0.85, color=_SERIES[1], linewidth=1.5)
    axes.set_yticks([0.4 - row for row in range(len(signals))], [str(row) for row in range(len(signals))])
    axes.set_xlabel("step", color=_INK)
    return _save_chart(figure)


def radar(series: Mapping[str, Mapping[str, float]], title: str) -> bytes:
    """Shares in [0, 1] on spokes as PNG: one outline a name, one spoke an axis."""
    figure = Figure(figsize=(5.8, 4.2), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    names = list(next(iter(series.values())))
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for index, (name, values) in enumerate(series.items()):
        around = [*(values[axis] for axis in names), values[names[0]]]
        color = _SERIES[index % len(_SERIES)]
        axes.plot([*angles, angles[0]], around, label=name, color=color, linewidth=2)
        axes.fill([*angles, angles[0]], around, color=color, alpha=0.12)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0])
    axes.set_rlabel_position(180 / len(names))  # type: ignore[attr-defined]  # between two spokes
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_INK, alpha=0.35, linewidth=0.8)
    axes.tick_params(axis="x", pad=12)
    axes.spines["polar"].set_color(_INK)
    if len(series) > 1:
        figure.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="outside right upper")
    return _save_chart(figure)


def matrix(values: Float[np.ndarray, "r c"], title: str, rows: str, columns: str) -> bytes:
    """A matrix of shares in [0, 1] as a coloured chart with its numbers, as PNG."""
    figure, axes = _chart(title, (max(3.0, 1.2 + 0.55 * values.shape[1]), 1.2 + 0.42 * values.shape[0]))
    axes.imshow(values, cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black", fontsize=8
        )
    axes.set_xticks(range(values.shape[1]))
    axes.set_yticks(range(values.shape[0]))
    axes.set_xlabel(columns, color=_INK)
    axes.set_ylabel(rows, color=_INK)
    return _save_chart(figure)


def overlay(frames: Frames, heat: Float[np.ndarray, "*T r c"], opacity: float = 0.55) -> Frames:
    """Frames under a heat map of coarser cells, 0 to 1: transparent where it is cold."""
    height, width = frames.shape[-3:-1]
    rows, columns = np.arange(height) * heat.shape[-2] // height, np.arange(width) * heat.shape[-1] // width
    level = np.clip(heat[..., rows[:, None], columns[None, :]], 0, 1)
    color = matplotlib.colormaps[_HEAT](level)[..., :3] * 255
    alpha = opacity * level[..., None]
    return np.round((1 - alpha) * frames + alpha * color).astype(np.uint8)


def _text_band(text: str, width: int, font_size: int) -> UInt8[np.ndarray, "h W 3"]:
    font = ImageFont.load_default(font_size)
    margin = font_size // 2
    lines = _wrap(text, font, width - 2 * margin)
    line_height = round(1.3 * font_size)
    image = Image.new("RGB", (width, line_height * len(lines) + margin), _BAND)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((margin, margin // 2 + row * line_height), line, font=font, fill=_BAND_TEXT)
    return np.asarray(image)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Lines of whole words that fit ``width`` pixels; a word that is wider stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _to_height(frames: Frames, height: int) -> Frames:
    """Nearest-neighbour resize that keeps the aspect ratio; whole factors repeat pixels."""
    old_height, old_width = frames.shape[-3:-1]
    width = round(old_width * height / old_height)
    rows, columns = np.arange(height) * old_height // height, np.arange(width) * old_width // width
    return frames[..., rows[:, None], columns[None, :], :]


def _hold(frames: Frames, length: int) -> Frames:
    return frames[np.minimum(np.arange(length), len(frames) - 1)]


def _pad_top(frames: Frames, height: int) -> Frames:
    missing = height - frames.shape[-3]
    band = np.broadcast_to(np.asarray(_BAND, np.uint8), (*frames.shape[:-3], missing, *frames.shape[-2:]))
    return np.concatenate([band, frames], axis=-3)


def _encode(frames: Sequence[np.ndarray] | np.ndarray, image_format: str, **options) -> bytes:
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if len(images) > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    else:
        options.pop("duration", None)
    stream = io.BytesIO()
    images[0].save(stream, image_format, **options)
    return stream.getvalue()


def _chart(title: str, inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty chart, without pyplot: its figures are global and never freed."""
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_INK)
    return figure, axes


def _save_chart(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_CHART_DPI, transparent=True)
    return stream.getvalue()
