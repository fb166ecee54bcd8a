"""A world action model as a table: which streams, which weights they share, who sees whom, what noise, how sampled."""

import dataclasses
import difflib
from collections.abc import Iterable

from wam_jax.wam.noise import INDEPENDENT, Independent, Joint, StreamNoise
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, Rule

# What a stream's data is, and how it becomes tokens.
KINDS = {
    "video": "patches",  # latent frames of all cameras; frame 0 is now
    "depth": "patches",
    "flow": "patches",
    "action": "steps",  # one token a control step of the chunk
    "latent_action": "steps",  # one token a frame of the future
    "state": "frames",  # proprioception, one token a block
    "value": "frames",
    "understanding": "features",  # frozen features of the instruction, as tokens
    "register": "learned",  # tokens without data
}
CONDITIONS = ("text", "state", "levels")
ROLES = ("context", "denoised", "predicted")
REMAT = ("none", "dots", "attention", "full")
SOLVERS = ("euler", "heun")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bridge:
    """Cross-attention from an expert's layers to another expert's hidden states.

    Attributes:
      source: the expert that is read.
      layers: "spread" taps ℓ_j = round(j (M - 1) / (N - 1)) of the source's M layers for the N own ones, which run
        after the source (AGRA); a number taps that one layer for all (DiT4DiT); "parallel" reads the input of the
        source's same layer, side by side with it.
      detach: no gradient flows into the source.
    """

    source: str
    layers: str | int = "spread"
    detach: bool = False

    @property
    def parallel(self) -> bool:
        return self.layers == "parallel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expert:
    """One set of block weights. Experts of different widths meet in one joint attention over equal heads.

    Attributes:
      layers: how many; the trunk's ``num_layers`` by default. Only an expert behind a bridge, or one that branches
        off, may have its own number.
      conditions: what sets the adaLN modulation of its tokens beside their noise level: "text" (the mean over the
        instruction's token features), "state" (proprioception), "levels" (the noise levels of all streams).
      text: cross-attention to the instruction's tokens.
      image_width: of a frozen encoder's image tokens, read in the same cross-attention by keys and values of their own
        (Wan 2.1 image to video: CLIP's, 1280); 0 reads none.
      attention_of: use this expert's attention weights (and width); own feed-forward only.
      bridge: read another expert by cross-attention instead of sharing its attention.
      branch_of: begin ``layers`` before the end, from a copy of this expert's tokens.
    """

    name: str
    width: int
    ffn_width: int
    layers: int | None = None
    conditions: tuple[str, ...] = ()
    text: bool = True
    image_width: int = 0
    attention_of: str | None = None
    bridge: Bridge | None = None
    branch_of: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """A token sequence.

    Attributes:
      name: unique; also where its data is found in a batch.
      kind: what its data is (``KINDS``).
      expert: whose weights its tokens run through; streams that name the same expert share all weights.
      role: "context" is only ever given; "denoised" comes from noise, by flow matching; "predicted" comes at once, by
        regression from learned queries (or, behind ``branch_of``, from the tokens branched off).
      noise: of a denoised stream.
      loss_weight: of its error in the sum; 0 trains nothing.
      head: "linear", or "diffusion": the trunk sees learned queries, and a small network denoises each token given
        what the trunk made of its query (UVA; after MAR, arXiv 2406.11838).
      data_of: another stream whose data and input and output maps this one shares (a second pass over the same video).
      per_embodiment: input and output maps of its own for every embodiment.
      injected: written into a latent frame and mapped as video is (Cosmos Policy).
      tokens: how many, of a register stream.
      given_channels: of a frame, beside the latents that are denoised (Wan 2.1 image to video: a mask and the latents
        of the given image, 20); zero where nothing is given.
    """

    name: str
    kind: str
    expert: str
    role: str = "denoised"
    noise: StreamNoise | None = None
    loss_weight: float = 1.0
    head: str = "linear"
    data_of: str | None = None
    per_embodiment: bool = False
    injected: bool = False
    tokens: int = 1
    given_channels: int = 0


@dataclasses.dataclass(frozen=True)
class Move:
    """One stream's part in a stage: down to noise level ``to``.

    Attributes:
      steps: of its own, spread over the stage's; all of them by default.
      shift: of its levels towards noise.
      guidance: classifier-free: v = v_without_text + guidance (v - v_without_text); 1 is none.
    """

    stream: str
    to: float = 0.0
    steps: int | None = None
    shift: float = 1.0
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Streams denoised together. All others stay as they are, and what depends on them alone is computed once."""

    moves: tuple[Move, ...]
    steps: int = 10
    solver: str = "euler"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """One use of a model: stage after stage.

    Attributes:
      stages: in order. A policy stops after the last stage that its actions need.
      given: streams whose data the caller gives.
      missing: streams that stay pure noise (level 1).
    """

    name: str
    stages: tuple[Stage, ...]
    given: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The model, but for what the data decides (``Interface``).

    Attributes:
      streams, experts, visibility, noise, modes: the table.
      num_layers, num_heads, head_dim: of the trunk; the attention width is num_heads * head_dim in every expert.
      chunk_frames: cut the future into blocks of so many frames, and actions alike; None leaves it in one block.
      chunk_draws: training draws the frames of a block from these, a step at a time; it acts with ``chunk_frames``.
      history: blocks of the past kept in the rolling cache; chunk-causal specs act with it.
      patch_size: latent rows and columns merged into one video token.
      learned_positions: learned grid positions beside rotary ones, shared by cameras; else cameras lie side by side in
        the rotary columns.
      time_scale: rotary positions a control step; None counts frames, as Wan does.
      context_noise: standard deviation of Gaussian noise on clean latents in training (augmentation).
      text_dropout: share of training samples without their instruction, for guidance.
      padded_text: cross-attention sees an instruction's padding too, as zeros up to ``Interface.text_tokens``: Wan was
        trained so.
      dtype: of activations; parameters, softmax and norms are float32.
      remat: what the backward pass computes again: "none" nothing, "dots" all but matrix products, "attention" all but
        splash's attention (as "full" elsewhere), "full" each layer.
      unroll: layers in one iteration of the scan; all of them is faster on a CPU and slower to compile.

    Raises:
      ValueError: naming the field that does not fit.
    """

    name: str
    streams: tuple[Stream, ...]
    experts: tuple[Expert, ...]
    modes: tuple[Mode, ...]
    num_layers: int
    num_heads: int
    head_dim: int
    visibility: Rule = FIRST_FRAME_CAUSAL & ISOLATED
    noise: Joint = INDEPENDENT
    chunk_frames: int | None = None
    chunk_draws: tuple[int, ...] = ()
    history: int = 0
    patch_size: int = 2
    learned_positions: bool = True
    time_scale: float | None = 1.0
    context_noise: float = 0.0
    text_dropout: float = 0.0
    padded_text: bool = False
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        for problem in _problems(self):
            raise ValueError(f"{self.name}: {problem}")

    def stream(self, name: str) -> Stream:
        """Raises: ValueError if there is no such stream."""
        return _named(self.streams, name, "stream", self.name)

    def expert(self, name: str) -> Expert:
        """Raises: ValueError if there is no such expert."""
        return _named(self.experts, name, "expert", self.name)

    def mode(self, name: str) -> Mode:
        """Raises: ValueError if there is no such mode."""
        return _named(self.modes, name, "mode", self.name)

    def expert_of(self, stream: str) -> Expert:
        return self.expert(self.stream(stream).expert)

    def layers(self, expert: Expert) -> int:
        return self.num_layers if expert.layers is None else expert.layers

    def coupled(self, query: str, key: str) -> bool:
        """Whether tokens of one expert have a way to see another's: joint attention, or a bridge."""
        of_query, of_key = self.expert(query), self.expert(key)
        if query == key or (of_query.bridge and of_query.bridge.source == key):
            return True
        return not any(e.bridge and not e.bridge.parallel for e in (of_query, of_key))

    @property
    def generated(self) -> tuple[str, ...]:
        """Names of the streams that come out of the model."""
        return tuple(stream.name for stream in self.streams if stream.role != "context")


def _named(items: Iterable, name: str, what: str, spec: str):
    found = {item.name: item for item in items}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{spec}: {what} {name!r} is unknown (has: {', '.join(found)}){hint}")
    return found[name]


def _problems(spec: Spec) -> Iterable[str]:
    """What does not fit together, each with its way out."""
    if spec.head_dim % 2:
        yield f"head_dim must be even for rotary positions, got {spec.head_dim}"
    if spec.remat not in REMAT:
        yield f"remat {spec.remat!r} is unknown (has: {', '.join(REMAT)})"
    if spec.chunk_frames is not None and spec.chunk_frames < 1:
        yield f"chunk_frames must be 1 or more, or None for a future in one block, got {spec.chunk_frames}"
    yield from _chunk_problems(spec)
    for items, what in ((spec.streams, "streams"), (spec.experts, "experts"), (spec.modes, "modes")):
        names = [item.name for item in items]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            yield f"{what} {', '.join(map(repr, repeated))} appear twice; give each a name of its own"
    yield from _noise_problems(spec)
    for expert in spec.experts:
        yield from (f"expert {expert.name!r}: {problem}" for problem in _expert_problems(spec, expert))
    for stream in spec.streams:
        yield from (f"stream {stream.name!r}: {problem}" for problem in _stream_problems(spec, stream))
    for mode in spec.modes:
        yield from (f"mode {mode.name!r}: {problem}" for problem in _mode_problems(spec, mode))


def _chunk_problems(spec: Spec) -> Iterable[str]:
    if not spec.chunk_draws:
        return
    if spec.chunk_frames is None or min(spec.chunk_draws) < 1:
        yield f"chunk_draws must be 1 or more each, beside a chunk_frames, got {spec.chunk_draws}"
    queried = [s.name for s in spec.streams if s.role == "predicted" or s.head == "diffusion"]
    if queried:
        yield f"chunk_draws: stream {queried[0]!r} has a learned query for each token of a block; set chunk_draws=()"


def _noise_problems(spec: Spec) -> Iterable[str]:
    named = [getattr(spec.noise, field, None) for field in ("leader", "given")]
    denoised = [stream.name for stream in spec.streams if stream.noise]
    for name in named:
        if name is not None and name not in denoised:
            yield f"noise names {name!r}, which is not denoised (has: {', '.join(denoised)})"
    shared = not isinstance(spec.noise, Independent)
    if shared and len({stream.noise.per_block for stream in spec.streams if stream.noise}) > 1:
        yield "noise that streams share needs noise.per_block alike in all of them"


def _expert_problems(spec: Spec, expert: Expert) -> Iterable[str]:
    names = [other.name for other in spec.experts]
    if unknown := sorted(set(expert.conditions) - set(CONDITIONS)):
        yield f"{unknown} are not conditions (has: {', '.join(CONDITIONS)})"
    source = expert.bridge.source if expert.bridge else None
    for field, other in (("attention_of", expert.attention_of), ("branch_of", expert.branch_of), ("bridge", source)):
        if other is not None and (other not in names or other == expert.name):
            yield f"{field} names {other!r}; it must be another expert (has: {', '.join(names)})"
            return
    if expert.attention_of and (expert.bridge or spec.expert(expert.attention_of).attention_of):
        yield f"attention_of={expert.attention_of!r} must have attention of its own, and there is no bridge beside it"
    if expert.attention_of and spec.expert(expert.attention_of).width != expert.width:
        yield f"attention_of={expert.attention_of!r} shares weights, so widths must be equal; set width={expert.width}"
    if expert.image_width and (expert.attention_of or not expert.text):
        yield f"image_width={expert.image_width} needs text cross-attention of its own; set text=True, no attention_of"
    if expert.bridge:
        layers, of = expert.bridge.layers, spec.expert(expert.bridge.source)
        if layers not in ("spread", "parallel", *range(spec.num_layers)):
            yield f"bridge.layers {layers!r} is unknown (has: spread, parallel, 0 to {spec.num_layers - 1})"
        if not expert.bridge.parallel and (of.bridge or of.branch_of):
            yield f"bridge reads {of.name!r}, which runs no earlier; let it read an expert of the trunk itself"
        if any(e.branch_of for e in spec.experts):
            yield "a bridge and a branch cannot be in one spec; let the branch be a stream of the trunk"
    own_depth = expert.branch_of or (expert.bridge and not expert.bridge.parallel)
    if not own_depth and spec.layers(expert) != spec.num_layers:
        yield f"layers={expert.layers} differs from num_layers={spec.num_layers}; only branches and layers that tap may"
    if expert.branch_of and not 0 < spec.layers(expert) < spec.num_layers:
        yield f"branches off, so layers must be between 1 and {spec.num_layers - 1}, got {expert.layers}"
    if expert.branch_of and spec.expert(expert.branch_of).width != expert.width:
        yield f"branch_of={expert.branch_of!r} copies its tokens, so widths must be equal"


def _stream_problems(spec: Spec, stream: Stream) -> Iterable[str]:
    experts, streams = [e.name for e in spec.experts], [s.name for s in spec.streams]
    if stream.kind not in KINDS:
        yield f"kind {stream.kind!r} is unknown (has: {', '.join(KINDS)})"
        return
    if stream.expert not in experts:
        yield f"names expert {stream.expert!r} (has: {', '.join(experts)})"
        return
    if stream.role not in ROLES:
        yield f"role {stream.role!r} is unknown (has: {', '.join(ROLES)})"
    if (stream.role == "denoised") != (stream.noise is not None):
        yield f"role {stream.role!r} {'needs' if stream.role == 'denoised' else 'has no'} noise"
    if stream.head == "diffusion" and (stream.role != "denoised" or stream.per_embodiment):
        yield "a diffusion head needs role 'denoised' and per_embodiment=False"
    if stream.head not in ("linear", "diffusion"):
        yield f"head {stream.head!r} is unknown (has: linear, diffusion)"
    if stream.data_of is not None and stream.data_of not in streams:
        yield f"data_of names {stream.data_of!r} (has: {', '.join(streams)})"
    if stream.role != "context" and KINDS[stream.kind] in ("features", "learned"):
        yield f"kind {stream.kind!r} cannot be {stream.role}; its role is context"
    if spec.expert(stream.expert).branch_of and stream.role != "predicted":
        yield "its expert branches off the trunk, so its role must be predicted"
    if stream.given_channels and (KINDS[stream.kind] != "patches" or stream.injected):
        yield f"given_channels={stream.given_channels} lie beside the latents of a frame; its kind must be of patches"
    if stream.injected and not any(s.kind == "video" for s in spec.streams):
        yield "is injected into latent frames, but there is no video stream"


def _mode_problems(spec: Spec, mode: Mode) -> Iterable[str]:
    moved = [move.stream for stage in mode.stages for move in stage.moves]
    for name in (*moved, *mode.given, *mode.missing):
        if name not in spec.generated:
            yield f"{name!r} is not generated (has: {', '.join(spec.generated)})"
    for stage in mode.stages:
        if stage.steps < 1:
            yield f"a stage needs 1 step or more, got {stage.steps}"
        if stage.solver not in SOLVERS:
            yield f"solver {stage.solver!r} is unknown (has: {', '.join(SOLVERS)})"
    for name in (*mode.given, *mode.missing):
        if name in spec.generated and (spec.stream(name).role != "denoised" or spec.stream(name).head == "diffusion"):
            yield f"{name!r} is queried, so the model does not see whether it is given or missing"
    if both := sorted(set(mode.given) & {*moved, *mode.missing}):
        yield f"{both[0]!r} is given, so it cannot be moved or missing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """What the data decides: the sizes at the model's edges.

    Attributes:
      latent_shape: rows, columns, channels of one camera's latent frame.
      cameras: number of cameras.
      frame_steps: control step of each frame, 0 (now) first.
      action_horizon, action_size: of an action chunk.
      proprio_size: of the proprioception vector.
      text_width, text_tokens: of the frozen text features.
      embodiments: number of robots with input and output maps of their own.
      latent_action_size: of a latent action.
    """

    latent_shape: tuple[int, int, int]
    cameras: int
    frame_steps: tuple[int, ...]
    action_horizon: int
    action_size: int
    proprio_size: int
    text_width: int
    text_tokens: int = 16
    embodiments: int = 1
    latent_action_size: int = 4
