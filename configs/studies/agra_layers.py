"""Which layer should be aligned, and to which teacher?

    wam study configs/studies/agra_layers.py

AGRA (arXiv 2606.12217) finds a third of the depth best, three layers together better, DINOv2 better than SigLIP. Here
the trunk has three layers: "first" is a third. A teacher at random weights is the control for what a teacher knows;
DINOv2 takes part where its weights are (`wam assets`). "none" and "first" are trained as in agra.py's study, and again
here: its other arms have no use for what is measured under changed conditions.
"""

from ml_collections import ConfigDict

from configs.studies import agra
from wam_jax import assets

DINOV2 = "dinov2_base"


def get_config() -> ConfigDict:
    config = agra.get_config()
    config.robustness = False
    before = config.arms.none.before
    aligned = {"alignment.variant": "action_condition", "before": before}
    arms = {
        "none": {"before": before},
        "first": {**aligned, "alignment.layers": (0,)},
        "middle": {**aligned, "alignment.layers": (1,)},
        "last": {**aligned, "alignment.layers": (2,)},
        "all": {**aligned, "alignment.layers": (0, 1, 2)},
        "random": {**aligned, "alignment.layers": (0,), "alignment.random_teacher": True},
    }
    if assets.status([DINOV2])[0].present:
        size = (224, 224)  # of 14 x 14 patches; the paper's are of 448 x 448
        arms["dinov2"] = {
            **aligned,
            "alignment.layers": (0,),
            "alignment.teacher": DINOV2,
            "alignment.teacher_size": size,
        }
    config.arms = ConfigDict(arms, allow_dotted_keys=True)
    config.compare = (*(("first", name) for name in arms if name != "first"), ("all", "none"))
    return config
