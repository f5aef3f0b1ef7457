"""The benchmark: what agentshim costs, as ratios to plain runc measured in the same run.

Belongs here: measuring, and telling what was measured. Next door: `conformance/engines` asks whether it is right.
Nothing here is a test: a slow machine is no failure, and the exit code says only whether measuring worked.
"""
