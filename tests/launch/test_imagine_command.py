"""`wam imagine` tells a model what it was made to hear."""

from launch.imagine import can_hear
from wam_jax.encoders import words


def test_a_model_of_skills_is_not_told_whole_instructions_that_are_longer(capsys):
    data = {"text_encoder": words.NAME, "text_tokens": words.LENGTH}
    meta = {"config": {"data": data}, "identity": {"interface": {"text_tokens": words.LENGTH}}}
    skill, whole = "pick up the red cube", ", then ".join(["pick up the red cube", "place it on the plate"] * 8)
    assert len(skill) <= words.LENGTH < len(whole)
    assert can_hear(meta, [skill, "place it on the plate"])
    assert not capsys.readouterr().err
    assert not can_hear(meta, [skill, whole])
    assert "have 512 tokens, the model was made for 256: it hears skills alone" in capsys.readouterr().err
