"""Every test runs on eight simulated CPU devices; the tiny world action model that many of them share.

The backend reads its options once, when it starts, so they are set and it is started while this file is imported.
"""

import os
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.module import Definition, Params, define
from wam_jax.types import Batch, StreamData, Text
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface, Spec
from wam_jax.zoo import make_spec

CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "tests"

# Many small programs share few cores, so each keeps to one thread.
ONE_THREAD = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
# Tests compile far more than they compute, so LLVM is told not to optimise.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0"

os.environ["XLA_FLAGS"] = f"{ONE_THREAD} {COMPILE_QUICKLY}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.devices()  # starts the backend, which reads its flags now
os.environ["XLA_FLAGS"] = ONE_THREAD  # programs that tests start (training, notebooks) compute more than they compile
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")

INTERFACE = Interface(
    latent_shape=(4, 4, 2), cameras=2, frame_steps=(0, 2, 4), action_horizon=4, action_size=4, proprio_size=3,
    text_width=5, text_tokens=4, embodiments=2,
)  # fmt: skip


class TinyModel:
    """Makes small specs, definitions and parameters; all widths divide by 2, 4 and 8."""

    interface = INTERFACE

    @staticmethod
    def spec(name: str = "fast_wam", **changes) -> Spec:
        sizes = {"layers": 2, "heads": 4, "head_dim": 6, "video": 24, "video_ffn": 48, "action": 16, "action_ffn": 32}
        small = {"noise": "logit_normal", "action_draws": 2, "video_batch_share": 0.5, "video_loss_weight": 0.3}
        return make_spec(name, **{**sizes, "unroll": 1, **(small if name == "fast_wam" else {}), **changes})

    def define(self, name: str = "fast_wam", **changes) -> Definition[WorldActionModel]:
        spec = self.spec(name, **changes)
        return define(lambda rngs: WorldActionModel(spec, INTERFACE, rngs))

    @staticmethod
    def params(definition: Definition) -> Params:
        """Random everywhere: at its real start a model's heads are zero, and would hide every difference."""
        leaves, tree = jax.tree.flatten(definition.shapes())
        rng = np.random.default_rng(0)
        return tree.unflatten([jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eight samples of latents with every mask partly false."""
    rng = np.random.default_rng(1)
    size, frames = 8, len(INTERFACE.frame_steps)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(size, *shape)).astype(np.float32)

    text_mask = np.ones((size, 4), bool)
    text_mask[::2, 2:] = False
    action_mask = np.ones((size, INTERFACE.action_horizon, INTERFACE.action_size), bool)
    action_mask[1, 1:] = False
    image_mask = np.ones((size, frames, INTERFACE.cameras), bool)
    image_mask[0, 2] = False
    proprio_mask = np.ones((size, frames, INTERFACE.proprio_size), bool)
    proprio_mask[0, 2] = False
    return Batch(
        images=None,
        latents=normal(frames, INTERFACE.cameras, *INTERFACE.latent_shape),
        image_mask=image_mask,
        actions=normal(INTERFACE.action_horizon, INTERFACE.action_size),
        action_mask=action_mask,
        proprio=normal(frames, INTERFACE.proprio_size),
        proprio_mask=proprio_mask,
        text=Text(features=normal(4, INTERFACE.text_width), mask=text_mask),
        embodiment=np.arange(size, dtype=np.int32) % 2,
        streams={
            "value": StreamData(values=normal(frames, 1), mask=image_mask[..., 0]),
            "depth": StreamData(values=normal(frames, INTERFACE.cameras, *INTERFACE.latent_shape), mask=image_mask),
        },
    )


# Files that take a minute or more, longest first: begun last, one of them would keep a single worker busy at the end.
LONG = ("test_sharding.py", "sim/", "wam/test_model.py", "objectives/", "wam/", "weights/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = pathlib.Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(folder).as_posix()
        return next((i for i, name in enumerate(LONG) if path.startswith(name)), len(LONG))

    items.sort(key=rank)  # stable: the order within is as collected
