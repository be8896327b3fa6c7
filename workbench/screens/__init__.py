"""The screens of the app, one file each: `build(stage)` lays a screen out and wires it, inside its tab.

What a screen shows is computed by plain functions that know nothing of gradio, in the rooms below. Nothing here is
imported before a wrong flag is answered; this file imports nothing.
"""
