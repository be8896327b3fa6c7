"""A run's held-out problems as a task of lm-evaluation-harness, judged by our verifiers.

The room promises that a folder it writes needs nothing of this package but `verifiers` to be evaluated: `utils.py` is
copied beside the task as it stands. Here `lm_eval` is never imported.
"""
