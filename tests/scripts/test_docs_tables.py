"""The tables in docs/ that the code holds."""
import shutil

import pytest

from helper.util.errors import RunError
from scripts import docs_tables


def test_the_pages_are_up_to_date():
    for name, table in docs_tables.TABLES.items():
        text = (docs_tables.DOCS / name).read_text()
        assert docs_tables.with_table(text, table()) == text, "run python scripts/docs_tables.py"
        assert table() in text


def test_check_names_a_stale_page_and_writes_nothing(tmp_path, monkeypatch, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in docs_tables.TABLES:
        shutil.copy(docs_tables.DOCS / name, docs)
    stale = (docs / "models.md").read_text().replace("`--epochs 240`", "`--epochs 24`")
    (docs / "models.md").write_text(stale)
    monkeypatch.setattr(docs_tables, "DOCS", docs)
    monkeypatch.setattr("sys.argv", ["docs_tables.py", "--check"])
    with pytest.raises(RunError, match=r"docs/models\.md not up to date: run python scripts/docs_tables\.py"):
        docs_tables.main()
    assert (docs / "models.md").read_text() == stale
    monkeypatch.setattr("sys.argv", ["docs_tables.py"])
    docs_tables.main()
    assert "written: docs/models.md" in capsys.readouterr().out and "`--epochs 240`" in (docs / "models.md").read_text()
