"""The scripts behind the findings of the docs answer --help, and refuse what they do not know in one line."""
import sys

import pytest

from helper.util.errors import UsageError
from scripts.experiments import class_means_finding, measure_crd


@pytest.mark.parametrize("script", [class_means_finding, measure_crd])
def test_help_is_shown(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0 and "usage: " in capsys.readouterr().out


def test_an_unknown_variant_of_crd_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_crd.py", "theirs"])
    with pytest.raises(UsageError, match="invalid choice: 'theirs'"):
        measure_crd.main()
