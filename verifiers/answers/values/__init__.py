"""What expressions are worth: exact rationals, a normal form, numbers with error bounds."""
