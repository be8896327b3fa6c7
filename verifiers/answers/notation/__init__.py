"""How answers are written: characters, tokens, units, expressions. Nothing here knows what a value is."""
