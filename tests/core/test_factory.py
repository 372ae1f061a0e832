import sys
from pathlib import Path

import pytest

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.factory import is_factory, load_factory, source_file


@pytest.fixture(autouse=True)
def restored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes importable is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"def make():\n    return {text!r}\n")


def test_every_file_is_a_module_of_its_own(tmp_path: Path) -> None:
    places = {"one/model.py": "model:make", "two/model.py": "model:make", "a/b.py": "a.b:make", "a_b.py": "a_b:make"}
    for place in places:
        write(tmp_path / place, place)
    for place, factory in places.items():
        folder = tmp_path / place.split("/")[0] if factory == "model:make" else tmp_path
        assert load_factory(factory, folder)() == place
        assert source_file(factory, folder) == tmp_path / place


def test_siblings_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path / "masksparse_test_sibling.py", "sibling")
    (tmp_path / "model.py").write_text("from masksparse_test_sibling import make\n")
    assert load_factory("model:make", tmp_path)() == "sibling"


def test_siblings_can_be_imported_inside_a_function(tmp_path: Path) -> None:
    write(tmp_path / "masksparse_test_later.py", "later")
    (tmp_path / "model.py").write_text("def make():\n    import masksparse_test_later as m\n    return m.make()\n")
    assert load_factory("model:make", tmp_path)() == "later"


def test_a_package_may_use_relative_imports(tmp_path: Path) -> None:
    write(tmp_path / "masksparse_test_nets" / "blocks.py", "block")
    (tmp_path / "masksparse_test_nets" / "__init__.py").write_text("from .blocks import make\n")
    (tmp_path / "masksparse_test_nets" / "net.py").write_text("from .blocks import make\n")
    for factory, file in (("masksparse_test_nets:make", "__init__.py"), ("masksparse_test_nets.net:make", "net.py")):
        assert load_factory(factory, tmp_path)() == "block"
        assert source_file(factory, tmp_path) == tmp_path / "masksparse_test_nets" / file


def test_a_module_that_failed_is_imported_again(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise OSError('no such disk')\n")
    with pytest.raises(UsageError, match=r"model.py \(OSError: no such disk\)"):
        load_factory("model:make", tmp_path)
    write(tmp_path / "model.py", "repaired")
    assert load_factory("model:make", tmp_path)() == "repaired"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.py", "x")
    with pytest.raises(UsageError, match="no callable 'made'; it has: make"):
        load_factory("model:made", tmp_path)
    with pytest.raises(UsageError, match="on the Python path"):
        load_factory("no_such_module:make", tmp_path)
    with pytest.raises(UsageError, match="not of the form module:callable"):
        load_factory("model.py", tmp_path)


@pytest.mark.parametrize("text", ["images", "folder/model:make", "C:\\data", "model:", ":make", "model:make()"])
def test_what_is_no_factory(text: str) -> None:
    assert not is_factory(text)
