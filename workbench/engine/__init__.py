"""One checkpoint, two roles.

The room promises that a role's scores are the model's own: the only shift between tokens and their predictions is in
`Engine.score`, both roles go through the same chat template, and equal contexts on equal weights differ by nothing.
It never knows a recipe's name, never judges, and never reads a problem beyond what a context renders.
"""
