"""Addresses of a cluster's head that cannot be one are refused before anything is connected."""

import pytest

from varve.errors import JobError
from varve.submission.address import check_address


@pytest.mark.parametrize(
    "address",
    ["", "\0", "file:///etc/passwd", "http://", "http://127.0.0.1:99999999", "http://[::1", f"http://{'x' * 64}:8265"],
)
def test_address_of_another_form_is_refused_with_the_expected_form(address):
    with pytest.raises(JobError, match=r"expected http://HOST:8265 or https://HOST"):
        check_address(address)
