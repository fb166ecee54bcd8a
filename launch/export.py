"""`wam export`: a run as files that other tools read, and back.

wam export runs/quickstart --out exported                          safetensors, configuration, model card
wam export runs/finetune/lora --format adapter --out adapter       LoRA's factors as PEFT names them
wam export exported --format run --out runs/again                  a run folder: `wam evaluate`, `config.init`
"""

import argparse
from pathlib import Path

from wam_jax import console
from wam_jax.training.export import export_adapter, export_run, export_safetensors
from wam_jax.training.run import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="run folder, or an export")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--format", choices=("safetensors", "adapter", "run"), default="safetensors", help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of safetensors (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    source = open_run(args.checkpoint)
    if args.format == "safetensors":
        export_safetensors(source, args.out, args.dtype)
    elif args.format == "adapter":
        export_adapter(source, args.out)
    else:
        export_run(source, args.out)
    files = sorted(path for path in args.out.rglob("*") if path.is_file())
    if args.format == "run":
        console.log(f"wrote {args.out}; next: wam evaluate {args.out}")
        return
    rows = [(path.name, f"{path.stat().st_size / 2**20:.2f} MiB") for path in files]
    console.table(f"Written to {args.out}", ("file", "size"), rows)
