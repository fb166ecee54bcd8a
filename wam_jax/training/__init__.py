"""Training: a state that is only data, a pure step, a resumable loop."""
