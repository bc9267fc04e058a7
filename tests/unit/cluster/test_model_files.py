"""The folder of model files on a node, whose name other users of the machine know."""

import os

import pytest

from varve.cluster.model_files import make_private
from varve.errors import RunError


def test_folder_is_readable_for_its_user_only(tmp_path):
    folder = tmp_path / "models"
    make_private(folder)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_link_with_the_name_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"is not a folder of this user\. Remove it, or set TMPDIR"):
        make_private(tmp_path / "models")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to another user")
def test_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    os.chown(tmp_path / "models", 12345, 12345)
    with pytest.raises(RunError, match="is not a folder of this user"):
        make_private(tmp_path / "models")
