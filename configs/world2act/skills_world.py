"""The world model of a task of four skills: pick one cube, place it on a plate, and the same with another.

    wam train --config configs/world2act/skills_world.py
    wam imagine runs/world2act/skills_world --task place_both

It learns single skills, each with its own instruction, cut at gripper contacts; longer videos are made skill by skill.
`--config.data.skills.cut=` learns whole demonstrations instead (the plain world model).
"""

from ml_collections import ConfigDict

from configs.world2act import world


def get_config() -> ConfigDict:
    config = world.get_config()
    config.demos.tasks = ("place_both",)
    config.demos.episodes = (400,)  # about four times as long as those of pick_lift
    config.demos.hold_steps = 8  # shorter than data.skills.tail, or waiting at the end were a skill
    config.data.starts = 0  # a long skill is imagined window after window
    config.data.skills.cut = "gripper"
    return config
