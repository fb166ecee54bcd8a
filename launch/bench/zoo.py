"""`wam bench zoo`: does every system of the zoo learn, sample and act, and what does it cost?

All systems share the demonstrations, the tokenizer and the simulator's programs; each is trained for the same number of
steps on the same windows. "ms a chunk" is a robot's share where 64 act at once. Finished systems are kept in
``zoo.json`` and skipped when the command is run again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource
from launch import devices
from launch.config import ConfigError, load_config, to_plain
from launch.data import Data, interface_sizes, open_data
from launch.demos import demo_datasets
from launch.evaluate import task_text
from launch.tokenizers import encode_dataset, train_tokenizer
from wam_jax import console
from wam_jax.evaluation.heldout import action_errors
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.statistics import Rate
from wam_jax.flops import count_flops
from wam_jax.nn.module import Definition
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sharding import batch_sharding
from wam_jax.sim import compilation
from wam_jax.sim.rollout import WamParams, observe
from wam_jax.sim.tabletop import Tabletop
from wam_jax.training.checkpoint import first_difference
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.restore import define_model
from wam_jax.training.state import count_params
from wam_jax.training.trainer import Trainer
from wam_jax.types import Batch, Observation
from wam_jax.wam.model import WorldActionModel
from wam_jax.zoo import SYSTEMS

COLUMNS = (
    "system", "parameters", "GFLOP a step", "ms a step", "ms a chunk", "loss at first", "at last", "action error",
    "success", "minutes",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), help="default: all")
    parser.add_argument("--config", default="configs/bench_zoo.py", help="data and numbers (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench_zoo"), help="default: %(default)s")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    config = load_config(args.config, overrides)
    mesh = devices.start(config)
    path = args.workdir / "zoo.json"
    asked = to_plain(config)
    done = _finished(path, asked)
    bench = _Bench(config, mesh, args.workdir)
    names = args.systems or sorted(SYSTEMS)
    for number, name in enumerate(names, start=1):
        if name in done:
            console.log(f"{name} ({number} of {len(names)}): found in {path}")
            continue
        console.log(f"{name} ({number} of {len(names)})")
        done[name] = bench.measure(name)
        path.write_text(json.dumps({"config": asked, "systems": done}, indent=1) + "\n")
    rows = [_row(name, done[name]) for name in names]
    report = Report("The zoo, measured", subtitle=f"{config.train.optimizer.steps} steps of {config.train.batch_size}")
    report.add_table("Systems", COLUMNS, rows)
    console.table("The zoo, measured", COLUMNS, rows)
    failed = [name for name in names if not done[name]["loss_falls"]]
    console.log(f"{console.duration(time.monotonic() - began)}; wrote {report.write(args.workdir)} and {path}")
    if failed:
        raise RuntimeError(f"the loss of {', '.join(failed)} did not fall; see {path}")


def _finished(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same configuration measured.

    Raises:
      ConfigError: if it was another configuration; names the first field.
    """
    if not path.exists():
        return {}
    saved = json.loads(path.read_text())
    difference = first_difference(saved["config"], json.loads(json.dumps(config)))
    if difference is not None:
        field, old, new = difference
        raise ConfigError(f"{path} was measured with {field}={old!r}, this run has {new!r}; choose another --workdir")
    return saved["systems"]


class _Bench:
    """What all systems share: data, tokenizer, and the simulator's compiled programs."""

    def __init__(self, config: ConfigDict, mesh: Mesh, workdir: Path):
        self.config, self.mesh = config, mesh
        config.data.datasets = demo_datasets(config, workdir)
        self.whole = open_data(config.data)
        self.tokenizer = train_tokenizer(config, self.whole, mesh, workdir / "tokenizer")
        self.latents: list[LatentSource] = encode_dataset(self.whole, self.tokenizer)
        blocks = config.copy_and_resolve_references()
        blocks.data.action_block = config.data.action_horizon // (len(config.data.frame_steps) - 1)
        self.blocks = open_data(blocks.data)
        self.loop = _ClosedLoop(Tabletop(config.demos.tasks[0], image_size=config.data.image_size[0]), config)

    def measure(self, name: str) -> dict[str, Any]:
        """Trains, samples and acts with one system at its debug size."""
        began = time.monotonic()
        identity = {"model": {"name": name, "size": "debug", "options": {}}}
        identity["interface"] = interface_sizes(self.whole, self.tokenizer.config.latent_shape)
        definition = define_model(identity)
        layout = definition.bind(definition.shapes()).layout
        data = self.blocks if layout.autoregressive else self.whole
        trained = self._train(definition, data)
        found = {"parameters": count_params(trained["params"]), **trained["figures"]}
        if any(stream.kind == "action" for stream in layout.spec.streams):
            policy = Policy(definition=definition, codec=data.codec, proprio=data.proprio)
            params = PolicyParams(model=trained["params"], tokenizer=self.tokenizer)
            batch = data.validation_windows(self.config.evaluation.episodes, self.config.seed, 0)
            found |= self.loop.run(policy, params, batch)
        return {**found, "minutes": round((time.monotonic() - began) / 60, 2)}

    def _train(self, definition: Definition[WorldActionModel], data: Data) -> dict[str, Any]:
        train = self.config.train
        numbers = OptimizerConfig(**train.optimizer)
        loss = wam_loss(definition)
        trainer = Trainer(definition=definition, loss=loss, config=numbers, mesh=self.mesh, seed=self.config.seed)
        state = trainer.init_state()
        batches = data.batches(train.batch_size, self.config.seed, self.latents)
        losses, seconds = [], []
        for _ in console.progress(range(numbers.steps), "train", numbers.steps):
            batch = jax.device_put(next(batches), batch_sharding(self.mesh))
            began = time.monotonic()
            state, metrics = trainer.step(state, None, batch)
            losses.append(float(metrics["loss"]))
            seconds.append(time.monotonic() - began)
        with jax.default_device(jax.devices("cpu")[0]):  # fused attention hides its products
            gradient = jax.grad(lambda p, b: loss(p, None, b, jax.random.key(0), jnp.zeros((), jnp.int32))[0])
            flops = count_flops(gradient, *jax.eval_shape(lambda *x: x, state.params, batch))
        tenth = max(1, numbers.steps // 10)
        first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
        figures = {
            "flops_per_step": flops.total,
            "ms_per_step": round(1000 * float(np.median(seconds[1:])), 1),
            "first_loss": round(first, 4),
            "last_loss": round(last, 4),
            "loss_falls": bool(np.isfinite(last) and last < first),
            "losses": [round(value, 4) for value in losses],
        }
        return {"params": state.acting, "figures": figures}


class _ClosedLoop:
    """Episodes driven from outside, so that the simulator is compiled once for all systems."""

    def __init__(self, env: Tabletop, config: ConfigDict):
        self.env, self.numbers = env, config.evaluation
        self.text = task_text(config, config.demos.tasks[0])
        self.execute = config.data.action_horizon // (len(config.data.frame_steps) - 1)
        self.reset = compilation.jit(jax.vmap(env.reset))
        self.advance = compilation.jit(self._advance)
        self.observe = compilation.jit(lambda wam, states: observe(env, wam, states))

    def run(self, policy: Policy, params: PolicyParams, heldout: Batch) -> dict[str, Any]:
        """Success over the episodes, the error of as many held-out chunks, and the milliseconds of a chunk.

        All three by one compiled program, for a batch of robots; a causal model's chunk is its next block.
        """
        count = self.numbers.episodes
        states = self.reset(jax.random.split(jax.random.key(self.numbers.seed), count))
        wam = WamParams(policy=params, text=self.text, embodiment=jnp.asarray(0), misinform=jnp.asarray(False))
        act, begin = jax.jit(policy.act), jax.jit(policy.init_state)
        assert heldout.images is not None
        recorded = Observation(
            images=jnp.asarray(heldout.images[:, :1]),
            proprio=jnp.asarray(policy.proprio.unnormalise(heldout.proprio[:, 0])),
            text=heldout.text,
            embodiment=heldout.embodiment,
        )
        predicted = np.asarray(act(params, begin(params, recorded), recorded, jax.random.key(0))[0])
        actions = np.asarray(policy.codec.decode(jnp.asarray(heldout.actions)))[:, : predicted.shape[1]]
        error = action_errors(actions, predicted, np.asarray(heldout.action_mask)[:, : predicted.shape[1]])
        success, times = np.zeros(count, bool), []
        memory = begin(params, self.observe(wam, states))
        for number in range(-(-self.env.episode_steps // self.execute)):
            seen = jax.block_until_ready(self.observe(wam, states))
            began = time.monotonic()
            chunk, memory = act(params, memory, seen, jax.random.fold_in(jax.random.key(self.numbers.seed), number))
            jax.block_until_ready(chunk)
            times.append(time.monotonic() - began)
            states, success = self.advance(states, chunk[:, : self.execute])
        rate = Rate(int(np.asarray(success).sum()), count)
        return {
            "success": rate.rate,
            "ci95": list(rate.ci95),
            "episodes": count,
            "action_error": error["chunk"],
            "ms_per_chunk": round(1000 * float(np.median(times)) / count, 2),
        }

    def _advance(self, states: Any, actions: jax.Array) -> tuple[Any, jax.Array]:
        def step(states, action):
            return jax.vmap(self.env.step)(states, action), None

        states, _ = jax.lax.scan(step, states, jnp.swapaxes(actions, 0, 1))
        return states, jax.vmap(self.env.outcome)(states).success


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    def shown(key: str, form: str) -> str:
        return format(found[key], form) if key in found else "–"

    success = f"{found['success']:.3f}" if "success" in found else "–"
    return (
        name, f"{found['parameters'] / 1e6:.2f}M", f"{found['flops_per_step'] / 1e9:.1f}", shown("ms_per_step", ".0f"),
        shown("ms_per_chunk", ".2f"), shown("first_loss", ".3f"), shown("last_loss", ".3f"),
        shown("action_error", ".3f"), success, shown("minutes", ".1f"),
    )  # fmt: skip
