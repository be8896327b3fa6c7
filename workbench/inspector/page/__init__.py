"""What both roles saw of a completion, for people: in the app, as a file to mail around, in a terminal, as a table.

This room promises that a view shows the numbers of `Seen` and computes none, and that no text of a model, a data set
or a file name is ever obeyed by what shows it. It knows nothing of models; it never imports torch, gradio or a tracker.
"""
