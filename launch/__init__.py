"""The commands. No other package imports this one."""
