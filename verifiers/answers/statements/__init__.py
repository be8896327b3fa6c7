"""What can be stated about values: quantities with units, relations, sets of reals."""
