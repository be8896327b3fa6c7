"""`make docs`: write what is generated of docs/ (or with --check compare it), and follow every relative link."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "docs" / "methods.md"
VERIFIERS = ROOT / "docs" / "verifiers.md"


def pages() -> list[Path]:
    """Every Markdown page of the project, tracked or new."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in sorted(set(listed.stdout.splitlines())) if (ROOT / line).is_file()]


def anchor(heading: str) -> str:
    """The fragment a heading gets on a page."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere, and fragments that no heading has."""
    broken = []
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        headings = (
            re.findall(r"^#+ (.+)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            if goal.suffix == ".md" and goal.is_file()
            else []
        )
        if not goal.exists() or (fragment and fragment not in map(anchor, headings)):
            broken.append(f"{page.relative_to(ROOT)}: {target}")
    return broken


def with_policies(text: str) -> str:
    """The page about verifiers with the table of policies as it is now."""
    from verifiers.policy import page

    head, start, rest = text.partition("<!-- policies -->\n")
    return f"{head}{start}{page()}{rest[rest.index('<!-- end') :]}"


def main() -> int:
    """0 if the page is up to date (now, without --check) and all links resolve."""
    from workbench.__main__ import table

    problems = [line for page in pages() for line in broken_links(page)]
    if "--check" not in sys.argv:
        METHODS.write_text(table(), encoding="utf-8")
        VERIFIERS.write_text(with_policies(VERIFIERS.read_text(encoding="utf-8")), encoding="utf-8")
    elif not METHODS.is_file() or METHODS.read_text(encoding="utf-8") != table():
        problems.append("docs/methods.md is not what the recipes say. Run `make docs`.")
    if with_policies(VERIFIERS.read_text(encoding="utf-8")) != VERIFIERS.read_text(encoding="utf-8"):
        problems.append("docs/verifiers.md has other policies than the verifiers. Run `make docs`.")
    print("\n".join(problems) or f"{len(pages())} pages, every link resolves, docs/methods.md is what the recipes say")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
