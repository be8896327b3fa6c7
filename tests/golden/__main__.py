"""`make golden`: write trajectories.json anew and say what moved."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.conftest import build_tiny
from tests.golden.trajectories import FAMILIES, FILE, trajectory


def main() -> int:
    """Write the file; names on the command line choose families."""
    stored = json.loads(FILE.read_text()) if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny(Path(folder))
        for name in sys.argv[1:] or FAMILIES:
            fresh = trajectory(FAMILIES[name], model)
            if name not in stored:
                print(f"{name}: new")
            else:
                moved = [i + 1 for i, (old, new) in enumerate(zip(stored[name], fresh, strict=False)) if old != new]
                print(f"{name}: {f'moved from step {moved[0]} on' if moved else 'as before'}")
            stored[name] = fresh
    FILE.write_text(json.dumps(stored, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
