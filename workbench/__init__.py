"""OPSD workbench: self-distillation and reasoning compression for language models.

Importing the package loads no model code; the rooms are imported where they are used.
"""

__version__ = "0.1.0"
