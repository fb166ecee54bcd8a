"""Which layer should be aligned, and to which teacher?

    wam study configs/studies/agra_layers.py --workdir runs/studies/agra

AGRA (arXiv 2606.12217) finds a third of the depth best, three layers together better, DINOv2 better than SigLIP. Here
the trunk has three layers: a third is the first of them, which is agra.py's "action_condition"; in its folder this and
"none" are read back, not trained again, and the report is of the study that ran last. A teacher at random weights is
the control for what a teacher knows; DINOv2 takes part where its weights are (`wam assets`).
"""

from ml_collections import ConfigDict

from configs.studies import agra
from wam_jax import assets

DINOV2 = "dinov2_base"


def get_config() -> ConfigDict:
    config = agra.get_config()
    config.robustness = False
    first = config.arms.action_condition.to_dict()
    arms = {
        "none": config.arms.none.to_dict(),
        "action_condition": first,
        "middle": {**first, "alignment.layers": (1,)},
        "last": {**first, "alignment.layers": (2,)},
        "all": {**first, "alignment.layers": (0, 1, 2)},
        "random": {**first, "alignment.random_teacher": True},
    }
    if assets.status([DINOV2])[0].present:
        size = (224, 224)  # of 14 x 14 patches; the paper's are of 448 x 448
        arms["dinov2"] = {**first, "alignment.teacher": DINOV2, "alignment.teacher_size": size}
    config.arms = ConfigDict(arms, allow_dotted_keys=True)
    config.compare = (*(("action_condition", name) for name in arms if name != "action_condition"), ("all", "none"))
    return config
