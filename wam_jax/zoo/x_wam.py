from wam_jax.wam.noise import Asynchronous, Shifted, Uniform
from wam_jax.wam.spec import Mode, Move, Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL, Rule
from wam_jax.zoo.common import action, stage, state, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import DEBUG, WAN22, WAN_5B, Size

UNSEEN_DEPTH = Rule("depth unseen", lambda q, k: k.stream != "depth" or q.stream == "depth")


@system({"debug": DEBUG, "5b": WAN_5B}, {"5b": WAN22})
def x_wam(size: Size, *, depth_layers: int | None = None) -> Spec:
    """X-WAM: actions run ahead of the video that follows them; a branch of the last layers reads out depth.

    arXiv 2604.26694. Kept: one expert; the last layers copied for depth, which sees the trunk and is not seen, and is
    regressed; asynchronous noise (half the time actions clean, else the video at t_a + Beta(1.5, 1) (1 - t_a)); ten
    action steps, in which the video comes to 0.8, then forty more for the video. Differs: Euler instead of UniPC;
    future states are not predicted; the branch starts untrained instead of as a copy. Sources disagree whether
    attention is causal; here it is bidirectional.
    """
    layers = depth_layers or max(1, size.layers // 3)
    expert = unified_expert(size)
    noise = Shifted(Uniform(), 5.0)
    return Spec(
        name="x_wam",
        experts=(expert, unified_expert(size, name="depth", layers=layers, branch_of="all")),
        streams=(
            video("all", noise),
            state("all"),
            action("all", noise),
            Stream(name="depth", kind="depth", expert="depth", role="predicted"),
        ),
        visibility=BIDIRECTIONAL & UNSEEN_DEPTH,
        noise=Asynchronous(leader="action"),
        modes=(
            Mode(
                name="policy",
                stages=(stage(Move("video", to=0.8), "action"), stage("video", "depth", steps=40)),
            ),
        ),
        **size.trunk(),
    )
