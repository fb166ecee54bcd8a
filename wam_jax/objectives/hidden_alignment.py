"""Alignment of a world action model's hidden video tokens to a frozen vision encoder (AGRA, arXiv 2606.12217).

-1 / (K T h w) Σ cos(P_k(H_k), Y): tokens H_k after each of K layers, through a projector P_k of its own, against the
encoder's features Y of the clean frames, resized to the tokens' grid. Projectors are trained beside the model, as
parameters of ``AlignedModel``, and are no part of what acts or is exported.
"""

import dataclasses
from typing import get_args

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.objectives.alignment import Projector, ProjectorKind, cosine
from wam_jax.objectives.flow_matching import Auxiliary
from wam_jax.sharding import some_samples
from wam_jax.wam.lens import Lens, Shown
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface, Spec
from wam_jax.wam.visibility import Group

PASSES = ("video", "action_condition")
PROJECTORS = "projectors"  # parameters of this name are trained beside the model, and dropped


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Which tokens are aligned, and how.

    Attributes:
      weight: of the loss.
      on: the pass whose tokens are aligned: "video", where the video is denoised, with the present; or
        "action_condition", all video that actions read (noisy, clean, or the present alone).
      layers: of the trunk; tokens after them. Empty: one, after a third of its depth (the paper's best single one).
      projector: "linear", "mlp" or "conv", see ``Projector``.
      teacher_width: channels of the encoder's features.

    Raises:
      ValueError: naming the field that is unknown.
    """

    weight: float
    on: str
    layers: tuple[int, ...]
    projector: str
    teacher_width: int

    def __post_init__(self):
        if self.on not in PASSES:
            raise ValueError(f"alignment on {self.on!r} is unknown (has: {', '.join(PASSES)})")
        if self.projector not in get_args(ProjectorKind):
            kinds = ", ".join(get_args(ProjectorKind))
            raise ValueError(f"alignment.projector {self.projector!r} is unknown (has: {kinds})")

    def layers_of(self, spec: Spec) -> tuple[int, ...]:
        """Raises: ValueError, if the trunk has fewer."""
        if beyond := [layer for layer in self.layers if not 0 <= layer < spec.num_layers]:
            raise ValueError(f"alignment.layers has {beyond[0]}; {spec.name} has layers 0 to {spec.num_layers - 1}")
        return self.layers or (max(round(spec.num_layers / 3) - 1, 0),)


class AlignedModel(WorldActionModel):
    """The model with a projector for every aligned layer."""

    def __init__(self, spec: Spec, interface: Interface, config: AlignmentConfig, rngs: nnx.Rngs):
        super().__init__(spec, interface, rngs)
        self.alignment = config
        check_pass(spec, config.on)
        width = spec.expert_of(video_stream(spec)).width
        self.projectors = nnx.List(
            [Projector(config.projector, width, config.teacher_width, rngs) for _ in config.layers_of(spec)]  # type: ignore[arg-type]
        )

    def aligned_groups(self) -> tuple[Group, ...]:
        """Whose tokens are aligned."""
        of = self.spec.stream
        if self.alignment.on == "video":
            video = video_stream(self.spec)
            groups = [g for g in self.layout.needed([video]) if not g.clean or g.block == 0]
            return tuple(g for g in groups if g.stream == video)
        acting = [name for name in self.spec.generated if of(name).kind == "action"]
        return tuple(g for g in self.layout.needed(acting) if of(g.stream).kind == "video")

    def auxiliary(self, teacher: Float[Array, "B T V r c D"], mask: Bool[Array, "B T V"]) -> Auxiliary:
        """The alignment as a part of ``flow_matching_loss``; arguments as in ``alignment_loss``."""
        return Auxiliary(
            name="alignment",
            weight=self.alignment.weight,
            lens=Lens(layers=self.alignment.layers_of(self.spec)),
            stream=next((g.stream for g in self.aligned_groups() if not g.clean), None),
            loss=lambda shown: self.alignment_loss(shown, teacher, mask),
        )

    def alignment_loss(
        self, shown: Shown, teacher: Float[Array, "B T V r c D"], mask: Bool[Array, "B T V"]
    ) -> Float[Array, ""]:
        """Minus the mean cosine similarity; -1 where every projected token points where the teacher's feature does.

        Args:
          shown: of the aligned pass.
          teacher: features of the clean frames, the present first; of all samples, where ``shown`` has some of them.
          mask: which of them are there.
        """
        groups = self.aligned_groups()
        spans = [self.layout.span(self.spec.stream(group.stream), group.block) for group in groups]
        moments = np.concatenate([np.arange(*span) for span in spans])
        rows, columns = self.layout.grid
        hidden = rearrange(
            jnp.concatenate([shown.layers[group] for group in groups], 2),
            "l b (t v r c) d -> l (b v) t r c d", v=self.interface.cameras, r=rows, c=columns,
        )  # fmt: skip
        samples = hidden.shape[1] // self.interface.cameras
        teacher, mask = some_samples(teacher, samples), some_samples(mask, samples)
        target = rearrange(teacher[:, moments], "b t v r c d -> (b v) t r c d")
        there = rearrange(mask[:, moments], "b t v -> (b v) t")
        layers = zip(self.projectors, hidden, strict=True)
        return jnp.stack([cosine(project(x), target, there) for project, x in layers]).mean()


def check_pass(spec: Spec, on: str) -> None:
    """Raises: ValueError, if a system has no such pass."""
    video = spec.stream(video_stream(spec))
    if on == "video" and not (video.name in spec.generated and video.loss_weight):
        raise ValueError(f"alignment on 'video': {spec.name} trains no video; choose action_condition")
    if on == "action_condition" and all(spec.stream(name).kind != "action" for name in spec.generated):
        raise ValueError(f"alignment on 'action_condition': nothing acts in this {spec.name}; choose video")


def video_stream(spec: Spec) -> str:
    """The name of the video.

    Raises:
      ValueError: if there is none.
    """
    names = [stream.name for stream in spec.streams if stream.kind == "video" and stream.data_of is None]
    if not names:
        raise ValueError(f"{spec.name} has no video stream, so there is nothing to align or to look at")
    return names[0]
