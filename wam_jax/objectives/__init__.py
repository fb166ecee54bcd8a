"""Losses: functions of model, batch and key."""
