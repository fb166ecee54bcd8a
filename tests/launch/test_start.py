"""What a finetuning takes over, what it trains, and the errors of one that cannot begin."""

import dataclasses

import numpy as np
import pytest

from configs import agra, common
from data_pipelines.transforms import ActionCodec, Affine
from launch.alignment import aligned_pass
from launch.config import ConfigError
from launch.start import check_start, described_model, open_source, trained_patterns, with_normalisation_of
from wam_jax.assets import AssetMissing
from wam_jax.nn.module import paths
from wam_jax.training.partition import matching
from wam_jax.wam.layout import Layout
from wam_jax.zoo import make_spec


@dataclasses.dataclass(frozen=True)
class Side:
    """What of a run, or of data, normalisation depends on."""

    codec: ActionCodec
    proprio: Affine


def side(actions=3, proprio=2, cumulative=True, scale=1.0, block=None) -> Side:
    affine = Affine(np.zeros(actions, np.float32), np.full(actions, scale, np.float32))
    return Side(ActionCodec(np.full(actions, cumulative), affine, block=block), Affine.identity(proprio))


def test_units_are_those_of_the_start_where_both_mean_the_same():
    start, data = side(scale=2.0), side(scale=5.0)
    assert with_normalisation_of(start, data).codec is start.codec
    assert with_normalisation_of(None, data) is data


@pytest.mark.parametrize("other", [{"actions": 4}, {"proprio": 3}, {"cumulative": False}, {"block": 2}], ids=str)
def test_units_are_those_of_the_data_where_they_mean_something_else(other):
    data = side(**other)
    assert with_normalisation_of(side(), data) is data


class Has:
    """A source that has everything but some paths."""

    def __init__(self, definition, without):
        self._shapes = {p: x.shape for p, x in paths(definition.shapes()).items() if not p.startswith(without)}

    def shapes(self):
        return self._shapes


def test_what_the_source_lacks_is_trained_whatever_is_frozen(tiny):
    definition, config = tiny.define(), common.get_config()
    config.train.trainable = (r"trunk/.*",)
    selected = matching(trained_patterns(config, definition, Has(definition, "maps/action/")))
    for path in paths(definition.shapes()):
        assert selected(path) == path.startswith(("trunk/", "maps/action/"))


def test_everything_is_trained_unless_something_is_asked(tiny):
    assert trained_patterns(common.get_config(), tiny.define(), None) == []


def test_freezing_a_random_start_is_refused(tiny):
    config = common.get_config()
    config.train.lora.rank = 2
    with pytest.raises(ConfigError, match=r"random start; set config\.init"):
        trained_patterns(config, tiny.define(), None)


def test_a_start_that_is_not_there_says_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("WAM_ASSETS", raising=False)
    config = common.get_config()
    assert open_source(config, tiny.define()) is None
    config.init = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is no run, no folder of safetensors and no asset; `wam assets`"):
        open_source(config, tiny.define())
    config.init = "wan22_ti2v_5b"
    with pytest.raises(AssetMissing, match="asset 'wan22_ti2v_5b' is not on this machine; get it with: hf download"):
        open_source(config, tiny.define())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "uvm", r"model 'uvm' is not in the zoo; did you mean 'uwm'\?"),
        ("name", "uwm", "model 'uwm' has no 'action_draws'"),  # the default options are another system's
        ("size", "large", r"size 'large' is not in the sizes of fast_wam \(has: 5b, debug, small\); set model.size"),
        ("name", "", "config.model.name is empty, which means: that of the run in config.init"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_any_work(tmp_path, field, value, message):
    config = common.get_config()
    check_start(config, tmp_path)
    config.model[field] = value
    with pytest.raises(ValueError, match=message):
        check_start(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "aligned"}, r"config.alignment.variant='aligned' is unknown \(has: none, frozen, shared"),
        ({"variant": "video", "layers": (3,)}, "alignment.layers has 3; agra has layers 0 to 2"),
        ({"variant": "video", "projector": "cnn"}, r"alignment.projector 'cnn' is unknown \(has: linear, mlp, conv\)"),
        ({"variant": "video", "teacher": "resnet"}, r"encoder 'resnet' is unknown \(has: dinov2_small"),
        ({"variant": "video", "teacher": "dinov2_base"}, "asset 'dinov2_base' is not on this machine; get it with"),
        ({"variant": "frozen"}, "would freeze the video expert at its random start; set config.init to a run of it"),
    ],
)
def test_an_alignment_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("WAM_ASSETS", raising=False)
    config = agra.get_config()
    check_start(config, tmp_path)
    config.alignment.update(changes)
    with pytest.raises((ValueError, KeyError, AssetMissing), match=message):
        check_start(config, tmp_path)
    if config.alignment.variant == "frozen":
        check_start(config, tmp_path, starts=True)


def test_a_pass_that_a_system_does_not_have_is_refused_before_any_work(tmp_path):
    config = agra.get_config()
    config.model.options.actions = False
    with pytest.raises(ValueError, match="alignment on 'action_condition': nothing acts in this agra; choose video"):
        check_start(config, tmp_path)
    config.model = {"name": "reactive", "size": "debug", "options": {}}
    config.alignment.variant = "video"
    with pytest.raises(ValueError, match="alignment on 'video': reactive trains no video; choose action_condition"):
        check_start(config, tmp_path)


@pytest.mark.parametrize(
    ("variant", "aligned", "read"),
    [
        ("none", None, "features"),
        ("frozen", None, "features"),
        ("shared", "video", "video"),
        ("video", "video", "features"),
        ("action_condition", "action_condition", "features"),
    ],
)
def test_a_variant_decides_what_is_aligned_and_what_actions_read(tiny, variant, aligned, read):
    config = agra.get_config()
    config.alignment.variant = variant
    model = described_model(config, None)
    spec = make_spec(model["name"], model["size"], **model["options"])
    assert aligned_pass(config) == aligned
    layout = Layout(spec, tiny.interface)
    assert {group.stream for group in layout.needed(["action"]) if not group.clean} == {"action", read}


def test_frozen_trains_all_but_the_videos_expert(tiny):
    config = common.get_config()
    config.alignment.variant = "frozen"
    definition = tiny.define("agra")
    selected = matching(trained_patterns(config, definition, Has(definition, "nothing")))
    of_video = {p for p in paths(definition.shapes()) if not selected(p)}
    assert {path.split("/video/")[0] for path in of_video} == {"trunk/blocks", "maps", "conditioning", "text_in"}
    assert any(path.startswith("trunk/blocks/action/bridge") for path in paths(definition.shapes()) if selected(path))


def test_frozen_is_refused_where_it_would_freeze_nothing_or_something_else(tiny):
    config = common.get_config()
    config.alignment.variant = "frozen"
    with pytest.raises(ConfigError, match=r"uwm has actions and video in one expert, 'all'; choose another variant"):
        trained_patterns(config, tiny.define("uwm"), Has(tiny.define("uwm"), "nothing"))
    config.train.trainable = ("trunk/.*",)
    with pytest.raises(ConfigError, match=r"'frozen' says what is trained; leave config.train.trainable empty"):
        trained_patterns(config, tiny.define("agra"), Has(tiny.define("agra"), "nothing"))
