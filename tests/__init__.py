"""Tests mirror the rooms of `workbench/`; `conftest.py` holds the tiny model they run on."""
