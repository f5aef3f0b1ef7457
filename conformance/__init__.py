"""Conformance: real engines and real delegates, asked what became of a container under each policy."""
