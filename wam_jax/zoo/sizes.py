"""Sizes that systems share: one for a CPU, one for a GPU, and those of the open video models they start from."""

import dataclasses

from wam_jax.wam.spec import Interface


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of a spec that its idea does not depend on.

    Attributes:
      layers, heads, head_dim: of the trunk.
      video, video_ffn: width and feed-forward width of the video (or only) expert.
      action, action_ffn, action_layers: of an action expert; its layers count where it reads the trunk over a bridge.
      conditions, action_conditions: what sets adaLN beside noise; at "debug" and "small" also of systems that have no
        state. Small models hardly listen to cross-attention alone.
    """

    layers: int
    heads: int
    head_dim: int
    video: int
    video_ffn: int
    action: int
    action_ffn: int
    action_layers: int
    conditions: tuple[str, ...] = ()
    action_conditions: tuple[str, ...] = ()
    patch_size: int = 2
    learned_positions: bool = False
    time_scale: float | None = None
    dtype: str = "bfloat16"
    remat: str = "full"
    unroll: int = 1

    def trunk(self) -> dict:
        """The fields of ``Spec`` that a size decides."""
        return {
            "num_layers": self.layers,
            "num_heads": self.heads,
            "head_dim": self.head_dim,
            "patch_size": self.patch_size,
            "learned_positions": self.learned_positions,
            "time_scale": self.time_scale,
            "dtype": self.dtype,
            "remat": self.remat,
            "unroll": self.unroll,
        }


# Ours, of every system.
DEBUG = Size(
    layers=3, heads=4, head_dim=32, video=128, video_ffn=384, action=64, action_ffn=192, action_layers=2,
    conditions=("text",), action_conditions=("text", "state"), learned_positions=True, dtype="float32", remat="none",
    unroll=3, time_scale=1.0,
)  # fmt: skip

SMALL = dataclasses.replace(
    DEBUG, layers=8, heads=8, head_dim=64, video=512, video_ffn=2048, action=256, action_ffn=1024, action_layers=4,
    dtype="bfloat16", unroll=1,
)  # fmt: skip

# Wan 2.1 (arXiv 2503.20314) and 2.2 configurations; action experts of Fast-WAM's shape (1024 wide), narrower at 1.3B.
WAN_1_3B = Size(
    layers=30, heads=12, head_dim=128, video=1536, video_ffn=8960, action=768, action_ffn=3072, action_layers=30,
)  # fmt: skip
WAN_5B = Size(
    layers=30, heads=24, head_dim=128, video=3072, video_ffn=14336, action=1024, action_ffn=4096, action_layers=30,
)  # fmt: skip
WAN_14B = Size(
    layers=40, heads=40, head_dim=128, video=5120, video_ffn=13824, action=1024, action_ffn=4096, action_layers=40,
)  # fmt: skip
# Cosmos-Predict2-2B.
COSMOS_2B = Size(
    layers=28, heads=16, head_dim=128, video=2048, video_ffn=8192, action=1024, action_ffn=4096, action_layers=8,
)  # fmt: skip

# What the open models' data looks like: Wan 2.1 latents are 8 x 8 x 4 smaller than pixels, with 16 channels; Wan 2.2's
# 16 x 16 x 4, with 48. UMT5-XXL text.
WAN21 = Interface(
    latent_shape=(32, 40, 16), cameras=1, frame_steps=(0, 4, 8, 12, 16), action_horizon=16, action_size=14,
    proprio_size=14, text_width=4096, text_tokens=512,
)  # fmt: skip
WAN22 = Interface(
    latent_shape=(24, 20, 48), cameras=1, frame_steps=(0, 8, 16, 24, 32), action_horizon=32, action_size=14,
    proprio_size=14, text_width=4096, text_tokens=512,
)  # fmt: skip
COSMOS = Interface(
    latent_shape=(28, 28, 16), cameras=2, frame_steps=(0, 16), action_horizon=16, action_size=7,
    proprio_size=9, text_width=1024, text_tokens=512,
)  # fmt: skip
