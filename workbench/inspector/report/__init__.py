"""Does the signal of this run teach? Sections that a run's own records, and probes of its models, can answer.

Promises: the page, the terminal and report.json show the same `Section` values; every number is an `Estimate` with its
interval or a count; what could not be measured is said with its reason. Nothing here computes a divergence of its own.
"""
