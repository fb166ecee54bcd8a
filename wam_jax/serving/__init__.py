"""A policy behind an address: the server, and the policy that asks it."""
