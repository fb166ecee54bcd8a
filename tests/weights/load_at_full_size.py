"""Loads a folder of Wan 2.1 1.3B weights over so many simulated devices and prints bytes of memory as JSON.

python tests/weights/load_at_full_size.py FOLDER DEVICES
"""

import json
import resource
import sys

import jax

from wam_jax.nn.module import define
from wam_jax.sharding import make_mesh, param_shardings
from wam_jax.wam.model import WorldActionModel
from wam_jax.weights.files import open_weights
from wam_jax.weights.wan import load_video_expert
from wam_jax.zoo.registry import published


def main(folder: str, devices: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    spec, interface = published("wan", "2.1-1.3b")
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    shardings = param_shardings(make_mesh({"fsdp": devices}), definition.axes(), definition.shapes())
    params = load_video_expert(definition, shardings, open_weights(folder), jax.random.key(0)).params
    arrays = jax.block_until_ready(jax.tree.leaves(params))
    held = dict.fromkeys(jax.devices(), 0)
    for array in arrays:
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "params": sum(array.nbytes for array in arrays), "held": list(held.values())}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
