"""Servers that write for us: token ids out, token ids and log-probs in, and the weights they are sent.

Nothing here imports vLLM: a server runs in its own environment and is spoken to over HTTP. What a server says is
checked, never believed: a wrong answer is an error that names the replica.
"""
