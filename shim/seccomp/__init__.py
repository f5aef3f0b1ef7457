"""Profiles of system calls: their check, their meaning as cubes, their exact meet, and its cache.

Belongs here: everything about one OCI seccomp object that a container start may need. Next door: `dim/seccomp` is the
door that the lattice knows; `cold/seccomp/prove` compiles a meet with libseccomp and simulates the BPF.
Only `cache` does IO.
"""
