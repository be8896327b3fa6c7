"""What a token, a prompt and a run looked like to both roles.

The room promises the numbers the loss used, made by the loss's own functions; it re-implements no maths.
"""
