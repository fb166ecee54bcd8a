"""Loads a folder of Wan 2.1 1.3B weights over so many simulated devices and prints bytes of memory as JSON.

python tests/weights/load_at_full_size.py FOLDER DEVICES
"""

import json
import resource
import sys

import jax

from wam_jax.nn.module import define
from wam_jax.sharding import make_mesh
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.source import start_from
from wam_jax.training.trainer import Trainer
from wam_jax.wam.model import WorldActionModel
from wam_jax.weights.files import open_weights
from wam_jax.weights.wan import WanTransformer
from wam_jax.zoo.registry import published


def main(folder: str, devices: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    spec, interface = published("wan", "2.1-1.3b")
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    trainer = Trainer(
        definition=definition,
        loss=wam_loss(definition),
        config=OptimizerConfig(steps=1),
        mesh=make_mesh({"fsdp": devices}),
        seed=0,
    )
    params = start_from(WanTransformer(definition, open_weights(folder)), trainer).params
    arrays = jax.block_until_ready(jax.tree.leaves(params))
    held = dict.fromkeys(jax.devices(), 0)
    for array in arrays:
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "params": sum(array.nbytes for array in arrays), "held": list(held.values())}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
