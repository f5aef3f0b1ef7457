"""Policies as people write them: read, joined, checked, compiled, shown. Next door: `shim.policy` loads compiled."""
