"""Runs read back: from checkpoints, from exports, with LoRA; and what a new training takes from them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.lora import FACTORS, merge
from wam_jax.nn.module import paths
from wam_jax.sharding import make_mesh
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.training.export import export_adapter, export_run, export_safetensors
from wam_jax.training.loop import Best
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.partition import matching, subset
from wam_jax.training.restore import define_model, load_trained
from wam_jax.training.run import is_run, open_run
from wam_jax.training.source import fresh_paths, start_from
from wam_jax.training.state import TrainState
from wam_jax.training.trainer import Trainer
from wam_jax.weights.files import open_weights

SIZES = {"layers": 2, "heads": 4, "head_dim": 6, "video": 24, "video_ffn": 48, "action": 16, "action_ffn": 32}
LORA = {"rank": 2, "alpha": 4.0, "targets": r"trunk/.*(query|up)$"}


def random_like(shapes, seed=0):
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])


def identity(tiny, **changes):
    action_size = changes.pop("action_size", tiny.interface.action_size)
    layers = {"ffn_ratio": 1, "encoder_layers": 1, "decoder_layers": 1}
    tokenizer = TokenizerConfig(image_size=(16, 16), patch_size=4, channels=2, width=8, **layers)
    return {
        "model": {"name": "fast_wam", "size": "debug", "options": SIZES},
        "interface": {**dataclasses.asdict(tiny.interface), "action_size": action_size},
        "tokenizer": dataclasses.asdict(tokenizer),
        "codec": ActionCodec(np.zeros(action_size, bool), Affine.identity(action_size)).to_dict(),
        "proprio": Affine.identity(tiny.interface.proprio_size).to_dict(),
        "seed": 0,
        "lora": None,
        **changes,
    }


def frozen_tokenizer(described) -> FrozenTokenizer:
    config = TokenizerConfig(**{**described["tokenizer"], "image_size": (16, 16)})
    return FrozenTokenizer(random_like(define_tokenizer(config).shapes()), jnp.zeros(2), jnp.ones(2), config)


def meta(described):
    data = {"cameras": ["front", "wrist"], "datasets": [], "normalization": "mean_std"}
    return {"identity": described, "config": {"demos": {"tasks": ["reach"]}, "data": data, "init": "runs/base"}}


def save(folder, described, params, lora=False):
    """Writes a run folder with one checkpoint, as training does."""
    checkpoints = Checkpoints(folder / "checkpoints")
    trained = subset(params, matching([FACTORS])) if lora else params
    if lora:
        checkpoints.save_base(subset(params, lambda path: not matching([FACTORS])(path)))
    state = TrainState(jnp.asarray(7), jax.tree.map(jnp.zeros_like, trained), trained, {"mu": jnp.zeros(3)})
    checkpoints.save(7, state, None, frozen_tokenizer(described), meta(described))
    checkpoints.close()


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """A run without LoRA: its folder and its parameters."""
    folder, described = tmp_path_factory.mktemp("plain"), identity(tiny)
    params = random_like(define_model(described).shapes())
    save(folder, described, params)
    return folder, params


@pytest.fixture(scope="module")
def adapted(tiny, tmp_path_factory):
    """A run with LoRA: its folder and all its parameters, factors included."""
    folder, described = tmp_path_factory.mktemp("adapted"), identity(tiny, lora=LORA)
    params = random_like(define_model(described).shapes())
    save(folder, described, params, lora=True)
    return folder, params


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({}, jax.devices()[:1])


def assert_same(got, wanted, **tolerance):
    assert paths(got).keys() == paths(wanted).keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, wanted)


def test_a_run_is_read_back_and_only_what_acts(plain, mesh):
    trained = load_trained(plain[0], mesh)
    assert trained.step == 7
    assert trained.image_size == 16
    assert_same(trained.params.model, plain[1], rtol=0)


def test_lora_is_merged_when_a_run_is_read_back(adapted, mesh):
    assert_same(load_trained(adapted[0], mesh).params.model, merge(adapted[1], 2.0), rtol=1e-6, atol=1e-7)


def test_an_export_reads_back_as_the_run(plain, mesh, tmp_path):
    export_safetensors(open_run(plain[0]), tmp_path / "export")
    exported, run = load_trained(tmp_path / "export", mesh), load_trained(plain[0], mesh)
    assert_same(exported.params.model, run.params.model, rtol=0)
    assert_same(exported.params.tokenizer.params, run.params.tokenizer.params, rtol=0)
    assert exported.step == 7
    np.testing.assert_array_equal(exported.policy.codec.affine.scale, run.policy.codec.affine.scale)
    export_run(open_run(tmp_path / "export"), tmp_path / "again")
    assert_same(load_trained(tmp_path / "again", mesh).params.model, run.params.model, rtol=0)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "# fast_wam (debug)" in card
    assert "actions | 4 a chunk, of 4 numbers" in card


def test_projectors_of_an_alignment_are_neither_read_back_nor_exported(tiny, mesh, tmp_path):
    alignment = {"weight": 0.5, "on": "video", "layers": [0], "projector": "mlp", "teacher_width": 3}
    described = identity(tiny, alignment=alignment)
    params = random_like(define_model(described, training=True).shapes())
    save(tmp_path / "run", described, params)
    kept = {name: tree for name, tree in params.items() if name != "projectors"}
    assert kept.keys() != params.keys()
    assert_same(load_trained(tmp_path / "run", mesh).params.model, kept, rtol=0)
    export_safetensors(open_run(tmp_path / "run"), tmp_path / "export")
    exported = open_weights(tmp_path / "export" / "model.safetensors").shapes()
    assert not [name for name in exported if "projector" in name]
    assert_same(load_trained(tmp_path / "export", mesh).params.model, kept, rtol=0)


@pytest.mark.slow
def test_an_export_in_bfloat16_is_the_run_rounded(plain, mesh, tmp_path):
    export_safetensors(open_run(plain[0]), tmp_path / "export", "bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), plain[1])
    assert_same(load_trained(tmp_path / "export", mesh).params.model, rounded, rtol=0)


def test_a_second_export_into_the_same_folder_is_refused(plain, tmp_path):
    export_safetensors(open_run(plain[0]), tmp_path / "export")
    with pytest.raises(FileExistsError, match=r"already has model.safetensors"):
        export_safetensors(open_run(plain[0]), tmp_path / "export")
    with pytest.raises(FileExistsError, match="already is a run"):
        export_run(open_run(plain[0]), plain[0])


def test_an_adapter_has_the_names_and_shapes_of_peft(adapted, tmp_path):
    export_adapter(open_run(adapted[0]), tmp_path)
    tensors = open_weights(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.trunk.blocks.video.1.ffn.up"
    a, b = tensors.read(f"{name}.lora_A.weight"), tensors.read(f"{name}.lora_B.weight")
    assert (a.shape, b.shape) == ((2, 24), (48, 2))
    layer = adapted[1]["trunk"]["blocks"]["video"]["ffn"]["up"]
    np.testing.assert_allclose(b @ a, (layer["lora_a"][1] @ layer["lora_b"][1]).T, rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (2, 4.0, None)
    assert "trunk.blocks.video.ffn.up" in config["target_modules"]
    assert "trunk.blocks.video.ffn.down" not in config["target_modules"]


def test_a_run_without_lora_has_no_adapter(plain, tmp_path):
    with pytest.raises(CheckpointError, match="was not adapted with LoRA"):
        export_adapter(open_run(plain[0]), tmp_path)


def test_lora_checkpoints_are_small(adapted):
    size = {
        name: sum(path.stat().st_size for path in (adapted[0] / "checkpoints" / name).rglob("*") if path.is_file())
        for name in ("7/state", "base")
    }
    assert size["7/state"] < size["base"]


def trainer(described, mesh) -> Trainer:
    definition = define_model(described)
    return Trainer(definition=definition, loss=wam_loss(definition), config=OptimizerConfig(steps=1), mesh=mesh, seed=3)


def test_a_new_action_size_keeps_everything_but_the_action_maps(tiny, plain, mesh):
    new = trainer(identity(tiny, action_size=6), mesh)
    start = start_from(open_run(plain[0]), new)
    assert set(start.fresh) == {
        "maps/action/project/linear/kernel", "maps/action/head/project/linear/kernel",
        "maps/action/head/project/linear/bias",
    }  # fmt: skip
    assert set(start.unused) == set(start.fresh)
    got, old = paths(start.params), paths(plain[1])
    for path in start.loaded:
        np.testing.assert_array_equal(got[path], old[path])
    kernel = np.asarray(got["maps/action/project/linear/kernel"])  # of 6 actions: standard deviation 1 / sqrt(6)
    assert kernel.std() == pytest.approx(6**-0.5, rel=0.2)
    assert not np.any(got["maps/action/head/project/linear/kernel"])  # heads start at zero


def test_repwams_second_stage_keeps_all_but_the_maps_of_actions(tiny):
    """Of the model of latent actions, by its parameters' names and shapes."""

    def shapes(**options) -> dict[str, tuple[int, ...]]:
        return {path: tuple(leaf.shape) for path, leaf in paths(tiny.define("repwam", **options).shapes()).items()}

    first, second = shapes(latent_actions=True, robot_actions=False), shapes()
    fresh = fresh_paths(tiny.define("repwam"), first)
    assert fresh
    assert all(path.startswith("maps/action/") for path in fresh)
    assert all(path.startswith("maps/latent_action/") for path in first.keys() - second.keys())
    assert {path: first[path] for path in second.keys() - set(fresh)} == {
        path: second[path] for path in second.keys() - set(fresh)
    }


def test_lora_starts_from_a_run_with_new_factors_only(tiny, plain, mesh):
    start = start_from(open_run(plain[0]), trainer(identity(tiny, lora=LORA), mesh))
    assert start.fresh
    assert all("/lora_" in path for path in start.fresh)
    assert start.unused == ()


def test_a_run_of_another_model_is_refused(tiny, plain, mesh):
    other = identity(tiny, model={"name": "wan", "size": "debug", "options": {"heads": 1, "video": 8, "video_ffn": 9}})
    other["interface"]["text_width"] = 7
    source = open_run(plain[0])
    with pytest.raises(ValueError, match=r"config.init has none of the model's \d+ arrays"):
        start_from(Nothing(source), trainer(other, mesh))


class Nothing:
    """A source whose arrays fit nowhere."""

    def __init__(self, source):
        self._source = source

    def shapes(self):
        return dict.fromkeys(self._source.shapes(), (1, 2, 3, 4, 5))


def test_the_best_state_replaces_a_worse_one_and_survives_a_resume(tmp_path, adapted):
    checkpoints = Checkpoints(adapted[0] / "checkpoints")
    state = TrainState(jnp.asarray(0), {"w": jnp.zeros(2)}, {}, ())
    best = Best(tmp_path / "best")
    for score, step, better in ((0.5, 10, True), (0.4, 20, False), (0.7, 30, True)):
        assert best.beaten_by(score, step) is better
        if better:
            best.keep(score, step, checkpoints, state, None, None, {"of": step})
            kept = Checkpoints(tmp_path / "best" / "checkpoints")
            assert kept.base_shapes() == checkpoints.base_shapes()  # one copy, found from both
            assert kept.meta() == {"of": step}
            kept.close()
    checkpoints.close()
    assert Best(tmp_path / "best", resume_step=30).score == 0.7
    assert Best(tmp_path / "best", resume_step=20).score == -np.inf  # of steps that will be trained again
    assert not (tmp_path / "best").exists()


def test_a_folder_that_is_no_run_is_told_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match="train one with: wam train"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not an export of this project"):
        open_run(tmp_path)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_no_run(tmp_path, adapted):
    """Else a finetuning that is begun again would take itself for its start."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_base({"w": jnp.zeros(2)})
    checkpoints.close()
    assert not is_run(tmp_path)
    assert is_run(adapted[0])
