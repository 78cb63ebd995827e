"""The Python snippets of the docs run as they stand, one after the other in one page."""
import re

import pytest
import torch

from tests.support import scripts


@pytest.mark.parametrize("page", ["use_elsewhere"])
def test_snippets_run(page):
    text = (scripts.ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    space: dict = {}
    torch.manual_seed(0)
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) > 3
    for snippet in snippets:
        exec(compile(snippet, f"docs/{page}.md", "exec"), space)
    losses = ("kd", "dkd", "nkd", "wttm", "attention", "nst", "similarity", "rkd", "pkt", "vid", "abound",
              "correlation", "kdsvd", "factor", "fsp", "loss")
    assert all(torch.isfinite(space[name]) for name in losses)


def test_links_of_the_docs_lead_somewhere():
    pages = [scripts.ROOT / "README.md", *(scripts.ROOT / "docs").rglob("*.md")]
    missing = []
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert missing == []
