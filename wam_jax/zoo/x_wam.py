import dataclasses

from wam_jax.wam.noise import Asynchronous
from wam_jax.wam.spec import Mode, Move, Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL, Rule
from wam_jax.zoo.common import action, stage, state, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size

UNSEEN_DEPTH = Rule("depth unseen", lambda q, k: k.stream != "depth" or q.stream == "depth")


@system(
    {"5b": WAN_5B},
    {"5b": dataclasses.replace(WAN22, latent_shape=(16, 20, 48), cameras=3, frame_steps=(0, 16, 32), proprio_size=16)},
)
def x_wam(size: Size, *, depth_layers: int | None = None) -> Spec:
    """X-WAM: actions run ahead of the video that follows them; a branch of the last layers reads out depth.

    arXiv 2604.26694. Kept: one expert, full attention; the last layers copied for depth, which sees the trunk and is
    not seen, and is regressed; asynchronous noise (half the time actions clean, else the video at t_a + Beta(1.5, 1) (1
    - t_a)), all levels shifted by 5; ten action steps, in which the video comes to 0.95, then forty more for the video.
    Differs: Euler instead of UniPC; future states are not predicted; the branch starts untrained instead of as a copy;
    no guidance; linear maps. One note says that attention is causal; the released code is bidirectional, as here.
    """
    layers = depth_layers or max(1, size.layers // 3)
    expert = unified_expert(size)
    return Spec(
        name="x_wam",
        experts=(expert, unified_expert(size, name="depth", layers=layers, branch_of="all")),
        streams=(
            video("all"),
            state("all"),
            action("all"),
            Stream(name="depth", kind="depth", expert="depth", role="predicted"),
        ),
        visibility=BIDIRECTIONAL & UNSEEN_DEPTH,
        noise=Asynchronous(leader="action", factor=5.0),
        modes=(
            Mode(
                name="policy",
                stages=(
                    stage(Move("video", to=20 / 21, shift=5.0), Move("action", shift=5.0)),
                    stage(Move("video", shift=5.0), "depth", steps=40),
                ),
            ),
        ),
        **size.trunk(),
    )
