"""Read tar shards from S3 in a simple way; endpoint and credentials come from the environment."""

import os
import tarfile
from collections.abc import Iterator

import boto3


def client():
    return boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))


def shards_of(url: str) -> list[str]:
    """Return the keys of the shards below s3://bucket/prefix."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []) if item["Key"].endswith(".tar"))


def members_of(url: str, shards: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the images in the given shards, each read as one stream."""
    bucket, s3 = url.removeprefix("s3://").partition("/")[0], client()
    for shard in shards:
        body = s3.get_object(Bucket=bucket, Key=shard)["Body"]
        with tarfile.open(fileobj=body, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, tar.extractfile(member).read()
