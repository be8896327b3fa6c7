"""Short answers: find the marked text, read it, compare it.

In the order data passes through: `extract` (which text), `notation` (characters, tokens, expressions), `values`
(exact, normal forms, numbers with error bounds), `statements` (quantities, relations, sets), `normalise` (text to
form), `compare` (two forms), `equivalence` (with the worker behind `link`, and the cache). Nothing here is public:
the door is `verifiers`.
"""
