"""Filters where no start waits: our own profiles, compiled programs, the proof of a meet, what was denied.

Next door: `shim.seccomp` has meaning, meet and cache.
"""
