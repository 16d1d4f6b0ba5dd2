"""Fixtures that several files share. What is heavy is imported where it is used."""

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A tiny FLUX.1 as a folder. Nobody writes into it: a test that changes a file copies it."""
    from flux_files import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def files(base, tmp_path_factory):
    """Component -> its single file: the same weights. Nobody writes into these either."""
    from flux_files import write_files

    return write_files(base, tmp_path_factory.mktemp("files"))
