import sys

import pytest


@pytest.fixture
def vitreous(monkeypatch, capsys):
    """Run the program in this process: ``code, stdout, stderr = vitreous("info", path)``."""

    def call(*arguments):
        from vitreous.cli.main import run

        monkeypatch.setattr(sys, "argv", ["vitreous", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run()
        out, err = capsys.readouterr()
        code = leaving.value.code
        return (0 if code is None else code), out, err

    return call
