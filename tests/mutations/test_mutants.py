"""All mutants can still be made. `python -m mutations` hunts them."""

import ast
from pathlib import Path

import pytest
from mutations.__main__ import copy_packages
from mutations.mutants import MUTANTS, AnchorLost, Mutant, apply, mutant


@pytest.mark.parametrize("wanted", MUTANTS, ids=lambda wanted: wanted.name)
def test_a_mutant_can_be_made_and_is_python(wanted: Mutant, tmp_path: Path):
    copy_packages(tmp_path)
    apply(wanted, tmp_path)
    for change in wanted.changes:
        ast.parse((tmp_path / change.file).read_text())


def test_names_are_unique():
    assert len({each.name for each in MUTANTS}) == len(MUTANTS)


def test_a_lost_anchor_is_an_error(tmp_path: Path):
    copy_packages(tmp_path)
    with pytest.raises(AnchorLost, match="0 times"):
        apply(mutant("lost", ("broker/core.py", "this is not in there", "")), tmp_path)
