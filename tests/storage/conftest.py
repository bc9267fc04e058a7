"""Rights on a bucket."""

import json
from contextlib import contextmanager

import pytest


@pytest.fixture
def read_only(servers):
    """(address of a bucket) → a context in which nobody may write to it."""
    import boto3

    @contextmanager
    def deny(address: str):
        bucket = address.removeprefix("s3://")
        client = boto3.client("s3", endpoint_url=servers("radosgw"))
        everything = {"Effect": "Deny", "Principal": "*", "Resource": [f"arn:aws:s3:::{bucket}/*"]}
        policy = {"Version": "2012-10-17", "Statement": [{**everything, "Action": ["s3:PutObject"]}]}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        yield
        client.delete_bucket_policy(Bucket=bucket)

    return deny
