"""`wam bench train`: one system's train step on this machine: time, memory, achieved FLOP/s, and where the time goes.

    wam bench train --spec repwam --size 1.3b --batch 8          (a GPU or TPU)
    wam bench train --spec repwam --size debug --batch 8         (a CPU)

Finetuning of Fast-WAM's published shape, 3 x 98 video tokens and 33 of actions and state, in full and with LoRA:

    wam bench train --spec fast_wam --size 5b --batch 16 --set latent_shape='(14,28,48)' \\
        --config.train.optimizer.moments=bfloat16 --config.train.optimizer.ema=0.0
    wam bench train --spec fast_wam --size 5b --batch 16 --set latent_shape='(14,28,48)' \\
        --config.train.lora.rank=32 --config.train.lora.targets='blocks/video/.*(query|key|value|output|up|down)$' \\
        --config.train.trainable='(".*/action/.*",)' --config.train.frozen_dtype=bfloat16 \\
        --config.train.optimizer.ema=0.0

FLOPs are counted from the program's matrix products (`wam_jax/flops.py`): the model's own, once forward and twice
backward, without what rematerialisation computes again. MFU is those over time and the chip's bf16 peak. With LoRA the
backward pass needs no products for frozen kernels; they are not counted either.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import devices
from launch.config import ConfigError, load_config
from launch.plan import parse_fields
from launch.start import model_trainer
from launch.zoo import changed, sized
from wam_jax import console
from wam_jax.compiled import memory
from wam_jax.flops import count_flops
from wam_jax.nn.lora import FACTORS, Lora, with_lora
from wam_jax.nn.module import define
from wam_jax.sharding import batch_sharding, use_mesh
from wam_jax.training.partition import union
from wam_jax.training.state import count_params
from wam_jax.training.trainer import Trainer
from wam_jax.wam.fake import abstract_batch, random_batch
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import REMAT, Interface, Spec
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
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of Spec, Size or Interface")
    parser.add_argument("--remat", choices=REMAT, help="default: the size's")
    parser.add_argument("--config", default="configs/common.py", help="platform, mesh, train.* (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if args.steps < 1 or args.batch < 1:
        raise ConfigError(f"--steps {args.steps} and --batch {args.batch} must be 1 or more")
    config = load_config(args.config, overrides)
    mesh = devices.start(config)
    changes = parse_fields(args.set) | ({"remat": args.remat} if args.remat else {})
    spec, interface = changed(args.spec, args.size, sized(args.spec, args.size)[1], changes)
    trainer = _trainer(config, spec, interface, mesh)
    batch = jax.device_put(random_batch(spec, interface, args.batch), batch_sharding(mesh))
    flops = _model_flops(config, dataclasses.replace(spec, remat="none"), interface, args.batch, mesh)
    total, trained = (count_params(tree) / 1e6 for tree in (trainer.definition.shapes(), trainer.trained_shapes))
    console.log(
        f"{args.spec} {args.size}: {total:.1f}M parameters, {trained:.1f}M trained, {flops / 1e12:.3f} TFLOP a step"
    )
    rest = trainer.init_params(lambda path: not trainer.trained(path))
    state, frozen = trainer.init_state(), trainer.frozen_argument(rest, None)

    def loss(params: Any, frozen: Any, batch: Any) -> jax.Array:
        with use_mesh(mesh):
            return trainer.step_loss(params, frozen, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]

    times = {
        "forward": _seconds(jax.jit(loss), args.steps, state.params, frozen, batch),
        "forward and backward": _seconds(jax.jit(jax.grad(loss)), args.steps, state.params, frozen, batch),
    }
    step: Any = trainer.step
    step = step.lower(state, frozen, batch).compile()
    kept, seconds = state, []
    for _ in console.progress(range(args.steps + 1), "train steps", args.steps + 1):
        began = time.monotonic()
        kept, metrics = step(kept, frozen, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.monotonic() - began)
    times["train step"] = float(np.median(seconds[1:]))
    figures = {**_figures(args, flops, times, mesh.size), "peak_bytes": memory(step).peak}
    rows = [(name, f"{1000 * value:.1f}", f"{value / times['train step']:.0%}") for name, value in times.items()]
    console.table("Where the time goes", ("program", "ms", "of a train step"), rows)
    mfu = f", MFU {figures['mfu']:.1%} of {figures['peak'] / 1e12:.0f} TFLOP/s" if figures["mfu"] else ""
    held = f", {figures['peak_bytes'] / 2**30:.2f} GiB at the peak"
    console.log(
        f"{figures['samples_per_s']:.2f} samples/s, {figures['achieved'] / 1e12:.2f} TFLOP/s a device{mfu}{held}; "
        f"loss {float(metrics['loss']):.3f}"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        console.log(f"wrote {args.json}")


def _trainer(config: ConfigDict, spec: Spec, interface: Interface, mesh: Mesh) -> Trainer:
    """The training that ``config.train`` describes, of this model."""
    lora = Lora(**config.train.lora) if config.train.lora.rank else None
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    definition = with_lora(definition, lora) if lora else definition
    patterns = [*config.train.trainable, *([FACTORS] if lora else [])]
    return model_trainer(config, definition, mesh, patterns)


def _model_flops(config: ConfigDict, spec: Spec, interface: Interface, batch: int, mesh: Mesh) -> float:
    """Of one forward and backward pass of the whole batch."""
    trainer = _trainer(config, spec, interface, mesh)
    shapes = trainer.definition.shapes()
    trained, rest = trainer.trained_shapes, trainer.frozen_part(shapes)
    with jax.default_device(jax.devices("cpu")[0]):  # counted on plain operations: fused attention hides its products

        def gradient(trained: Any, rest: Any, batch: Any) -> Any:
            key, step = jax.random.key(0), jnp.zeros((), jnp.int32)
            return jax.grad(lambda p: trainer.loss(union(rest, p), None, batch, key, step)[0])(trained)

        return count_flops(gradient, trained, rest, abstract_batch(spec, interface, batch)).total


def _figures(args: argparse.Namespace, flops: float, times: dict[str, float], count: int) -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    # The longest name that fits: "TPU v5" is a v5p, "TPU v5 lite" is not.
    peak = next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if name in kind), None)
    achieved = flops / times["train step"] / count
    return {
        "spec": args.spec,
        "size": args.size,
        "set": args.set,
        "batch": args.batch,
        "device": kind,
        "devices": count,
        "flops_per_step": flops,
        "seconds": times,
        "samples_per_s": args.batch / times["train step"],
        "achieved": achieved,
        "peak": peak,
        "mfu": achieved / peak if peak else None,
        "dtype_of_matrices": str(jnp.dtype(make_spec(args.spec, args.size).dtype)),
    }


def _seconds(function: Callable, steps: int, *arguments: Any) -> float:
    """Median time of a compiled call."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(steps):
        began = time.monotonic()
        jax.block_until_ready(function(*arguments))
        times.append(time.monotonic() - began)
    return float(np.median(times))
