"""Networks where no start waits: the section's meaning, bridges and rules of the host, what containers reached.

Next door: hooks/ has the messages; `verbs.lock` and `verbs.link` decide at a start.
"""
