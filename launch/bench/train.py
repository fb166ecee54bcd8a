"""`wam bench train`: one system's train step on this machine: time, achieved FLOP/s, and where the time goes.

    wam bench train --spec repwam --size 1.3b --batch 8          (a GPU or TPU)
    wam bench train --spec repwam --size debug --batch 8         (a CPU)

FLOPs are counted from the program's matrix products (`wam_jax/flops.py`): the model's own, once forward and twice
backward, without what rematerialisation computes again. MFU is those over time and the chip's bf16 peak.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch import devices
from launch.config import ConfigError, load_config
from launch.zoo import sized
from wam_jax import console
from wam_jax.flops import count_flops
from wam_jax.nn.module import define
from wam_jax.sharding import batch_sharding, use_mesh
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.state import count_params
from wam_jax.training.trainer import Trainer
from wam_jax.wam.fake import abstract_batch, random_batch
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import REMAT
from wam_jax.zoo import make_spec

# bf16 matrix peak of a chip in FLOP/s, dense, from the makers' data sheets; matched against the device's name.
PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
    "TPU v6": 918e12, "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v5 lite": 197e12,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spec", default="repwam", help="a system of the zoo (default: %(default)s)")
    parser.add_argument("--size", default="debug", help="one of its sizes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="samples a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: %(default)s)")
    parser.add_argument("--remat", choices=REMAT, help="default: the size's")
    parser.add_argument("--config", default="configs/common.py", help="platform and mesh (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if args.steps < 1 or args.batch < 1:
        raise ConfigError(f"--steps {args.steps} and --batch {args.batch} must be 1 or more")
    mesh = devices.start(load_config(args.config, overrides))
    spec, interface = sized(args.spec, args.size)
    if args.remat:
        spec = make_spec(args.spec, args.size, remat=args.remat)
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    loss = wam_loss(definition)
    trainer = Trainer(definition=definition, loss=loss, config=OptimizerConfig(steps=1000), mesh=mesh, seed=0)
    step, state = trainer.step, trainer.init_state()
    batch = jax.device_put(random_batch(spec, interface, args.batch), batch_sharding(mesh))
    plain = define(lambda rngs: WorldActionModel(make_spec(args.spec, args.size, remat="none"), interface, rngs))
    model_loss = wam_loss(plain)
    with jax.default_device(jax.devices("cpu")[0]):  # counted on plain operations: fused attention hides its products
        gradient = jax.grad(lambda p, b: model_loss(p, None, b, jax.random.key(0))[0])
        flops = count_flops(gradient, plain.shapes(), abstract_batch(spec, interface, args.batch)).total
    console.log(
        f"{args.spec} {args.size}: {count_params(state.params) / 1e6:.1f}M parameters, {flops / 1e12:.3f} TFLOP a step"
    )

    def forward(params: Any, batch: Any) -> jax.Array:
        with use_mesh(mesh):
            return loss(params, None, batch, jax.random.key(0))[0]

    times = {
        "forward": _seconds(jax.jit(forward), args.steps, state.params, batch),
        "forward and backward": _seconds(jax.jit(jax.grad(forward)), args.steps, state.params, batch),
    }
    kept, seconds = state, []
    for _ in console.progress(range(args.steps + 1), "train steps", args.steps + 1):
        began = time.monotonic()
        kept, metrics = step(kept, None, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.monotonic() - began)
    times["train step"] = float(np.median(seconds[1:]))
    figures = _figures(args, flops, times, mesh.size)
    rows = [(name, f"{1000 * value:.1f}", f"{value / times['train step']:.0%}") for name, value in times.items()]
    console.table("Where the time goes", ("program", "ms", "of a train step"), rows)
    mfu = f", MFU {figures['mfu']:.1%} of {figures['peak'] / 1e12:.0f} TFLOP/s" if figures["mfu"] else ""
    console.log(f"{figures['achieved'] / 1e12:.2f} TFLOP/s a device{mfu}; loss {float(metrics['loss']):.3f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        console.log(f"wrote {args.json}")


def _figures(args: argparse.Namespace, flops: float, times: dict[str, float], count: int) -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    # The longest name that fits: "TPU v5" is a v5p, "TPU v5 lite" is not.
    peak = next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if name in kind), None)
    achieved = flops / times["train step"] / count
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "spec": args.spec, "size": args.size, "batch": args.batch, "device": kind, "devices": count,
        "flops_per_step": flops, "seconds": times, "achieved": achieved, "peak": peak,
        "mfu": achieved / peak if peak else None, "peak_bytes": memory.get("peak_bytes_in_use"),
        "dtype_of_matrices": str(jnp.dtype(make_spec(args.spec, args.size).dtype)),
    }  # fmt: skip


def _seconds(function: Callable, steps: int, *arguments: Any) -> float:
    """Median time of a compiled call."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(steps):
        began = time.monotonic()
        jax.block_until_ready(function(*arguments))
        times.append(time.monotonic() - began)
    return float(np.median(times))
