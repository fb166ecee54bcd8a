import dataclasses

from wam_jax.wam.noise import Coupled
from wam_jax.wam.spec import Interface, Move, Spec
from wam_jax.wam.visibility import CHUNK_CAUSAL, window
from wam_jax.zoo.common import action, action_expert, noise_named, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN_1_3B, WAN_5B, Size

# 256 x 256 pixels in 16 x 16 patches of 96 channels (RepViTok), one token a latent.
REPVITOK = Interface(
    latent_shape=(16, 16, 96), cameras=1, frame_steps=(0, 4, 8, 12, 16), action_horizon=16, action_size=14,
    proprio_size=14, text_width=4096, text_tokens=512,
)  # fmt: skip


@system(
    {
        "1.3b": dataclasses.replace(WAN_1_3B, patch_size=1, action_ffn=3840),
        "5b": dataclasses.replace(WAN_5B, patch_size=1, action_ffn=1920),
    },
    {"1.3b": REPVITOK, "5b": REPVITOK},
)
def repwam(
    size: Size,
    *,
    robot_actions: bool = True,
    latent_actions: bool = False,
    history: int = 3,
    noise: str = "uniform",
) -> Spec:
    """RepWAM: one attention for video and actions, feed-forwards of their own, chunk after chunk.

    arXiv 2606.13674. Kept: attention shared and feed-forward own in every block, teacher forcing on clean past chunks,
    one noise level for both, uniform (``noise="logit_normal"`` has more weight on high noise, for small models from
    scratch), five video and ten action steps, a window (``history`` blocks; there 32). Its first stage has
    ``latent_actions`` and no ``robot_actions``; with both, it predicts them jointly (the ablation that fails in the
    paper). Differs: flow time runs from data to noise (the paper's α is 1 - t); chunks of one frame, unless
    ``chunk_frames`` (in use: 2 in the paper) and ``chunk_draws`` (in training: 1 to 4) say otherwise.

    ``size.action_ffn`` is the feed-forward width of the action expert. The paper gives "h_a = 768, about +350M" and
    does not say of which dimension; the published sizes here have what comes to 354M.
    """
    level = noise_named(noise)
    acting = [action(name="latent_action", kind="latent_action", noise=level)] if latent_actions else []
    acting += [action(noise=level)] if robot_actions else []
    return Spec(
        name="repwam",
        experts=(
            video_expert(size),
            action_expert(size, width=size.video, attention_of="video"),
        ),
        streams=(video(noise=level), *acting),
        visibility=CHUNK_CAUSAL & window(max(history, 1) + 1),
        noise=Coupled(),
        chunk_frames=1,
        history=history,
        modes=(together("policy", Move("video", steps=5), *(Move(s.name, steps=10) for s in acting), steps=10),),
        **size.trunk(),
    )
