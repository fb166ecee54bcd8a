"""`wam serve`: a run's policy behind a websocket, for robots and for programs elsewhere.

    wam serve runs/quickstart
    wam evaluate ws://127.0.0.1:8000 --out runs/remote      # elsewhere, or in another shell

The protocol is openpi's; what to send is in wam_jax/serving/server.py.
"""

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from launch import devices
from launch.config import load_config
from launch.data import encode_text
from wam_jax import console
from wam_jax.posttraining.restore import load_policy
from wam_jax.serving.server import HEALTH, PolicyService, listen, open_server
from wam_jax.training.restore import Trained
from wam_jax.types import Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="run folder, its best/, or an export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)")
    parser.add_argument("--config", default="configs/common.py", help="devices (default: %(default)s)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    sock = listen(args.host, args.port)  # before what takes time
    service = make_service(load_policy(args.checkpoint, devices.start(config)))
    with open_server(service, sock) as server:
        host, port = sock.getsockname()[:2]
        if not ipaddress.ip_address(host).is_loopback:
            console.log(f"{host} can be reached from other machines, and nobody is asked for a password")
        host = f"[{host}]" if ":" in host else host
        cameras = ", ".join(service.cameras)
        console.log(f"{args.checkpoint} (step {service.trained.step}; cameras {cameras}) at ws://{host}:{port}")
        console.log(f"health at http://{host}:{port}{HEALTH}; end with Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.log("ended")


def make_service(trained: Trained) -> PolicyService:
    """A policy with its text encoder, compiled for single observations."""
    data = trained.meta["config"]["data"]

    def encode(prompts: Sequence[str]) -> Text:
        table = encode_text(list(prompts), data["text_encoder"], data["text_tokens"])
        return Text(features=jnp.asarray(table.features), mask=jnp.asarray(table.mask))

    service = PolicyService(trained, encode)
    ages = len(service.ages)
    picture = np.zeros((*([ages] if ages > 1 else []), *service.image_size, 3), np.uint8)
    proprio = np.zeros(trained.meta["identity"]["interface"]["proprio_size"], np.float32)
    console.log("compiling for single observations")
    session = service.session()
    for _ in range(2):  # before a first observation there is no past
        session.answer({"images": dict.fromkeys(service.cameras, picture), "proprio": proprio, "prompt": "reach"})
    return service
