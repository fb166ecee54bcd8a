"""`wam tokenize`: every frame of the training data through a frozen tokenizer, once, kept beside the data.

    wam tokenize --config configs/repwam/pretrain.py

Trainings on the same data, tokenizer and frames then read latents instead of pictures; without this, the first of them
does the same. Interrupted, it goes on where it was.
"""

import argparse
import time
from pathlib import Path

from launch import devices
from launch.config import ConfigError, default_workdir, load_config
from launch.data import open_data
from launch.demos import demo_datasets
from launch.tokenizers import encode_dataset, find_tokenizer, with_images_for
from wam_jax import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="data and tokenizer (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, help="of the training it is for (default: runs/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    if not config.data.precompute_latents:
        raise ConfigError("config.data.precompute_latents is False: training would not read what is written here")
    mesh = devices.start(config)
    workdir = args.workdir or default_workdir(args.config)
    if not config.data.datasets and config.demos.tasks:
        config.data.datasets = demo_datasets(config, workdir)
    data = open_data(config.data)
    tokenizer = find_tokenizer(config, data, mesh, workdir)
    began = time.monotonic()
    latents = encode_dataset(with_images_for(tokenizer, data), tokenizer)
    rows = []
    for store, source in zip(data.train, latents, strict=True):
        shape = "x".join(str(size) for size in source.latent_shape)
        rows.append((store.name, store.num_episodes, int(store.episode_starts[-1]), shape, len(source.unreadable)))
    console.table("Tokenised", ("dataset", "episodes", "steps", "latents", "unreadable steps"), rows)
    console.log(f"{console.duration(time.monotonic() - began)}; beside each dataset")
