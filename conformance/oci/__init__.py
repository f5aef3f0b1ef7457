"""The runtime's command line without an engine: life cycle, differential, bad input."""
