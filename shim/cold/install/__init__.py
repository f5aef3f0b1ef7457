"""`agentshim install` and `uninstall`: our entry in an engine's own file.

Next door: `doctor` reads the same files without changing them.
"""
