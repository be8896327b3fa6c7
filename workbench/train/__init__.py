"""One step down the recipe's objective, and the loop around it: evaluate, log, save, stop, resume.

The room promises that a run continues exactly where it was saved, that a kill or a full disk never costs the
last good state, and that a viewer or a tracker never stops a run. No method's name appears in it.
"""
