"""`wam plan` on small steps: its bytes and FLOPs equal hand counts, and every verdict says what to do."""

import argparse
import dataclasses
import importlib.util
import json
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch import plan
from launch.plan import Plan, parse_fields, parse_mesh, plan_step, remedies
from launch.topologies import CHIPS, Chip, PlanError, find_topology
from wam_jax.compiled import Collective, Memory, OutOfMemory, Traffic
from wam_jax.flops import Flops
from wam_jax.nn.module import define
from wam_jax.sharding import batch_sharding, make_mesh, replicated
from wam_jax.training.losses import wam_loss
from wam_jax.training.state import TrainState
from wam_jax.wam.fake import abstract_batch
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import SYSTEMS, make_spec

LAYERS, WIDTH, TOKENS = 4, 64, 16
BATCH = 8
GIB = 2**30
INTERFACE = Interface(
    latent_shape=(4, 4, 2), cameras=1, frame_steps=(0, 4, 8), action_horizon=8, action_size=3, proprio_size=3,
    text_width=8, text_tokens=4,
)  # fmt: skip
TINY = make_spec("fast_wam", layers=2, heads=4, head_dim=8, video=32, video_ffn=64, action=16, action_ffn=32, unroll=1)


def transformer_loss(params, x):
    """A stack of attention and feed-forward layers, recomputed in the backward pass."""

    @jax.checkpoint
    def layer(x, w):
        query, key, value = (x @ w["attention"][i] for i in range(3))
        x = x + jax.nn.softmax(query @ key.mT) @ value
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    return (jax.lax.scan(layer, x, params)[0] ** 2).mean()


def toy_step(mesh, batch_size=BATCH, width=WIDTH):
    """(step, state, batch) of one momentum step, parameters cut along their token width."""

    def place(*shape: int, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    def step(state, frozen, batch):
        loss, grads = jax.value_and_grad(transformer_loss)(state.params, batch)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, state.optimizer, grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, state.params, moments)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, state.ema, params)
        return TrainState(state.step + 1, params, average, moments), loss

    params = {
        "attention": place(LAYERS, 3, width, width, spec=PartitionSpec(None, None, "fsdp")),
        "up": place(LAYERS, width, 4 * width, spec=PartitionSpec(None, "fsdp")),
        "down": place(LAYERS, 4 * width, width, spec=PartitionSpec(None, None, "fsdp")),
    }
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    state = TrainState(count, params, params, params)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    batch = jax.ShapeDtypeStruct((batch_size, TOKENS, width), jnp.float32, sharding=batch_sharding(mesh))
    return jitted, state, batch


@pytest.fixture(scope="module")
def toy() -> Plan:
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    step, state, batch = toy_step(mesh)
    return plan_step(step, state, None, batch, Chip("toy", 2**30, 1e12, 1e9, 1e8), mesh.size)


PARAMETERS = LAYERS * 11 * WIDTH**2


def test_bytes_held_are_each_chips_share(toy):
    share = PARAMETERS * 4 // 8
    assert toy.parameters == PARAMETERS
    assert toy.held == {
        "parameters": share,
        "moving average": share,
        "optimizer": share,
        "frozen": 0,
        "batch": BATCH * TOKENS * WIDTH * 4 // 8,
    }
    assert toy.memory is not None
    assert toy.memory.arguments == sum(toy.held.values()) + 4  # the step's number
    assert toy.needed >= toy.memory.arguments
    assert toy.memory.aliased == 3 * share + 4  # a step that is donated its state makes no second one


def test_flops_are_four_forward_passes_of_all_chips(toy):
    """Forward, again, and two for the gradients; the recomputation may leave out a product that nobody needs."""
    tokens = BATCH * TOKENS
    forward = LAYERS * 2 * tokens * (11 * WIDTH**2 + 2 * TOKENS * WIDTH)
    assert 3.5 * forward < toy.flops.total <= 4 * forward
    assert toy.flops.unbounded_loops == 0


def test_fully_sharded_parameters_are_gathered_in_every_layer_forward_and_backward(toy):
    assert toy.traffic is not None
    gathered = toy.traffic.kinds["all-gather"]
    assert gathered.count >= 2 * LAYERS
    assert gathered.payload >= 2 * PARAMETERS * 4
    assert gathered.sent == gathered.payload * 7 // 8
    assert toy.traffic.unknown_loops == 0


def test_the_roofline_is_the_largest_bound_at_the_rates_assumed(toy):
    seconds = toy.roofline()
    assert toy.memory is not None
    assert toy.traffic is not None
    assert seconds["compute"] == toy.flops.total / 8 / 1e12
    assert seconds["hbm"] == (toy.memory.arguments + toy.memory.outputs) / 1e9
    assert seconds["collectives"] == toy.traffic.sent / 1e8
    bounds = [seconds["compute"], seconds["hbm"], seconds["collectives"]]
    assert (seconds["step"], seconds["in_turn"]) == (max(bounds), sum(bounds))
    unknown = dataclasses.replace(toy, chip=Chip("cpu")).roofline()
    assert set(unknown.values()) == {None}


def made_plan(**changes) -> Plan:
    fields = {
        "chip": CHIPS["v5e"],
        "chips": 64,
        "parameters": 10,
        "held": {"parameters": GIB, "moving average": GIB, "optimizer": 2 * GIB, "frozen": 0, "batch": 5},
        "flops": Flops(matmul=64 * 197 * 10**12),
        "memory": Memory(arguments=4 * GIB, outputs=4 * GIB, aliased=4 * GIB, peak=10 * GIB),
        "traffic": Traffic({"all-gather": Collective(3, 400, 300)}),
        "refusal": None,
        "compile_s": 1.0,
    }
    return Plan(**{**fields, **changes})


def test_verdicts():
    assert made_plan().verdict == "fits: peak 10.000 GiB of 15.750 GiB a chip, 5.750 GiB to spare"
    over = made_plan(memory=Memory(arguments=0, outputs=0, aliased=0, peak=16 * GIB))
    assert over.verdict == "does not fit: needs 16.000 GiB of 15.750 GiB a chip, 0.250 GiB (268,435,456 bytes) too many"
    refused = made_plan(memory=None, traffic=None, refusal=OutOfMemory(20 * GIB, 15 * GIB))
    assert refused.verdict.startswith("does not fit: needs 20.000 GiB of 15.000 GiB a chip, 5.000 GiB")
    no_limit = made_plan(chip=Chip("cpu"))
    assert no_limit.verdict == "compiles: peak 10.000 GiB on each of 64 devices; no limit is assumed (set --hbm)"
    assert [p.fits for p in (made_plan(), over, refused, no_limit)] == [True, False, False, True]


def test_a_step_at_peak_rates_takes_its_operations_over_the_chips_rate():
    assert made_plan().roofline()["compute"] == 1.0


def test_remedies_name_only_what_is_left_to_do():
    mesh = make_mesh({"data": 4, "fsdp": 2}, jax.devices()[:8])
    refused = made_plan(chips=8, memory=None, traffic=None, refusal=OutOfMemory(20 * GIB, 15 * GIB))
    text = "\n".join(remedies(refused, "none", 32, mesh))
    for remedy in ("--mesh fsdp=8", "now 4.000 GiB a chip", "--batch 8", "--set remat=full", "--topology v5e:4x4"):
        assert remedy in text
    full = make_mesh({"fsdp": 8}, jax.devices()[:8])
    left = remedies(dataclasses.replace(refused, chip=Chip("cpu")), "full", 8, full)
    assert left == ["cut each sample: --mesh with tensor=2 or context=2; or fewer --frames"]


class Refusing:
    """A step that the compiler refuses."""

    def __init__(self, message):
        self.message = message

    def trace(self, state, frozen, batch):
        jaxpr = jax.make_jaxpr(lambda batch: batch @ batch.mT)(batch)
        return SimpleNamespace(jaxpr=jaxpr, lower=lambda: self)

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_refusal_for_memory_is_a_plan_and_any_other_an_error():
    _, state, batch = toy_step(make_mesh({"fsdp": 8}, jax.devices()[:8]))
    message = "the total memory required for HLO temporaries (20.00G) exceeds available HBM (15.75G)."
    refused = plan_step(Refusing(message), state, None, batch, CHIPS["v5e"], 8)
    assert (refused.needed, refused.available) == (20 * GIB, round(15.75 * GIB))
    assert refused.flops.total == 2 * BATCH * TOKENS**2 * WIDTH
    assert refused.figures()["collectives"] == {}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        plan_step(Refusing("INTERNAL: broken"), state, None, batch, CHIPS["v5e"], 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v6p:4x4", "chip 'v6p' is unknown (has: cpu, v5e, v5p, v6e); did you mean v6e?"),
        ("h100", "chip 'h100' is unknown (has: cpu, v5e, v5p, v6e)"),
        ("v5p:4x4x5", "8x16x16, 16x16x16, 16x16x24); did you mean v5p:4x4x4?"),
        ("v6e:4x4x4", "topology 'v6e:4x4x4' is unknown (v6e has: 2x2, 2x4, 4x4,"),
        ("v6e", "did you mean v6e:2x2?"),
        ("v5e:300", "did you mean v5e:16x16?"),
        ("cpu:many", "topology 'cpu:many': give the number of CPU devices, as cpu:8"),
        ("cpu:9", "topology 'cpu:9': JAX runs with 8 CPU devices"),
    ],
)
def test_an_unknown_topology_is_refused_with_the_nearest(name, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        find_topology(name)


def test_without_libtpu_a_tpu_topology_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"needs libtpu: pip install -e '.\[tpu\]'; or plan for --topology cpu:COUNT"):
        find_topology("v5e:2x2")


def test_what_is_asked_for_is_parsed_or_refused():
    assert parse_mesh("data=2,fsdp=-1") == {"data": 2, "fsdp": -1}
    for text in ("fsdp", "fsdp=x", "fsdp=2;data=4", ""):
        with pytest.raises(PlanError, match="is not AXIS=SIZE"):
            parse_mesh(text)
    assert parse_fields(["remat=full", "num_layers=4", "frame_steps=(0, 8)"]) == {
        "remat": "full",
        "num_layers": 4,
        "frame_steps": (0, 8),
    }
    with pytest.raises(PlanError, match="--set 'remat' is not FIELD=VALUE"):
        parse_fields(["remat"])


# -- the command ------------------------------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args(["--spec", "fast_wam", "--topology", "cpu:8", *words])


@pytest.fixture
def small(monkeypatch):
    """The command with the toy instead of a system of the zoo."""
    monkeypatch.setattr(plan, "_model", lambda args: (TINY, INTERFACE))
    monkeypatch.setattr(plan, "_abstract_step", lambda spec, interface, size, mesh: toy_step(mesh, size))


def test_the_command_prints_and_writes_the_same_figures(small, tmp_path, capsys):
    plan.run(arguments("--mesh", "fsdp=8", "--batch", "16", "--hbm", "1", "--json", str(tmp_path / "plan.json")))
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["fits"]
    assert figures["verdict"] in out
    assert f"{figures['needed_bytes'] / GIB:.3f}" in out
    assert f"{figures['flops']['total']:.3e} on all chips" in out
    assert (figures["batch"], figures["mesh"]["fsdp"], figures["chips"]) == (16, 8, 8)
    assert figures["memory_bytes"]["peak"] == figures["needed_bytes"] < GIB == figures["available_bytes"]
    assert figures["collectives"]["all-gather"]["count"] >= 2 * LAYERS


def test_a_model_that_does_not_fit_says_by_how_much_and_ends_with_code_1(small, capsys):
    with pytest.raises(SystemExit) as end:
        plan.run(arguments("--mesh", "data=2,fsdp=4", "--batch", "16", "--hbm", "0.0001"))
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert re.search(r"does not fit: needs .* bytes\) too many", out)
    for remedy in ("more fsdp: --mesh fsdp=8", "smaller batch: --batch 8", "--set remat=full"):
        assert remedy in out


@pytest.mark.slow
def test_a_system_of_the_zoo_is_planned_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "_model", lambda args: (TINY, INTERFACE))
    plan.run(arguments("--mesh", "fsdp=8", "--json", str(tmp_path / "plan.json")))
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["held_bytes"]["parameters"] == figures["held_bytes"]["moving average"]
    assert 2 * figures["held_bytes"]["parameters"] <= figures["held_bytes"]["optimizer"]
    assert figures["unknown_loops"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mesh", "fsdp=3"), "mesh data=1 x fsdp=3 x context=1 x tensor=1 does not fit 8 devices"),
        (("--mesh", "fdsp=8"), "mesh axis 'fdsp' is unknown (has: data, fsdp, context, tensor)"),
        (("--mesh", "fsdp=8", "--batch", "12"), "--batch 12 does not divide by data x fsdp = 8; set --batch 16"),
        (("--mesh", "fsdp=8", "--batch", "0"), "--batch 0 does not divide by data x fsdp = 8; set --batch 8"),
    ],
)
def test_a_mesh_or_batch_that_does_not_divide_is_refused(small, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan.run(arguments(*words))


def test_a_parameter_that_does_not_divide_is_named(monkeypatch):
    narrow = make_spec("fast_wam", layers=2, heads=2, head_dim=6, video=12, video_ffn=24, action=12, action_ffn=24)
    monkeypatch.setattr(plan, "_model", lambda args: (narrow, INTERFACE))
    with pytest.raises(ValueError, match=r"parameter .* does not divide by mesh axis .*fsdp.*8"):
        plan.run(arguments("--mesh", "fsdp=8"))


def test_overrides_of_a_config_are_refused():
    with pytest.raises(PlanError, match=r"argument '--config\.seed=1' is unknown; fields are set with --set"):
        plan.run(arguments(), ["--config.seed=1"])


def test_set_and_frames_change_spec_and_interface():
    spec, interface = plan._model(arguments("--set", "remat=none", "num_layers=3", "cameras=2", "--frames", "3"))
    assert (spec.remat, spec.num_layers, interface.cameras, len(interface.frame_steps)) == ("none", 3, 2, 3)
    assert spec.experts[0].width > 1024  # of the first published size
    with pytest.raises(PlanError, match="--frames 1: a sample has the present and a future"):
        plan._model(arguments("--frames", "1"))
    with pytest.raises(ValueError, match="has no 'remta'; did you mean 'remat'"):
        plan._model(arguments("--set", "remta=full"))


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_of_the_zoo_finds_its_data_in_the_abstract_batch(name):
    spec = make_spec(name)
    definition = define(lambda rngs: WorldActionModel(spec, INTERFACE, rngs))
    batch = abstract_batch(spec, INTERFACE, 2)
    loss, _ = jax.eval_shape(
        wam_loss(definition), definition.shapes(), None, batch, jax.random.key(0), jnp.zeros((), jnp.int32)
    )
    assert loss.shape == ()


# -- libtpu -----------------------------------------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the tpu extra")


@needs_libtpu
def test_a_tpu_topology_compiles_without_a_tpu():
    chip, devices = find_topology("v5e:2x2")
    mesh = make_mesh({"fsdp": 4}, devices)
    step, state, batch = toy_step(mesh, width=128)
    planned = plan_step(step, state, None, batch, chip, mesh.size)
    assert planned.fits
    assert planned.traffic is not None
    assert planned.traffic.unknown_loops == 0
    gathered = planned.traffic.kinds["all-gather"]
    bf16, float32 = planned.parameters * 2, planned.parameters * 4  # a TPU multiplies float32 in bf16 by default
    assert 2 * bf16 <= gathered.payload <= 3 * float32  # forward, recomputed forward, backward
    assert gathered.sent == gathered.payload * 3 // 4
    sums = [planned.traffic.kinds.get(kind, Collective()) for kind in ("all-reduce", "reduce-scatter")]
    reduced = sum(found.payload for found in sums)
    assert bf16 <= reduced <= 1.1 * float32


@needs_libtpu
def test_the_tpu_compilers_refusal_is_a_verdict():
    chip, devices = find_topology("v5e:2x2")
    mesh = make_mesh({"fsdp": 4}, devices)
    step, state, batch = toy_step(mesh, width=32768)
    planned = plan_step(step, state, None, batch, chip, mesh.size)
    assert not planned.fits
    assert planned.refusal is not None
    assert planned.available == chip.hbm
    assert planned.needed > sum(planned.held.values())
