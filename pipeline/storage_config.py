"""The group `storage` of a config: how to reach S3."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")


class StorageConfig(BaseModel):
    """How to reach S3. Keys and secrets are not allowed here: they come from the environment or a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint_url: str | None = Field(None, description="Use this S3 endpoint. Default: AWS_ENDPOINT_URL.")
    profile: str | None = Field(None, description="Use this AWS profile. Default: AWS_PROFILE.")
    region: str | None = Field(None, description="Use this AWS region. Default: AWS_DEFAULT_REGION.")
    anonymous: bool = Field(False, description="Read a public bucket without credentials.")

    def options(self) -> dict[str, Any]:
        """Return the arguments of s3fs.S3FileSystem."""
        client = {"endpoint_url": self.endpoint_url, "region_name": self.region}
        # Bytes are checked by their MD5 here (store_failures.py, etags.py). The client's own checksums stay off by default:
        # some servers refuse them in requests, and answer a part of an object with the checksum of the whole.
        checksums = {name: os.environ.get(f"AWS_{name.upper()}", "when_required") for name in CHECKSUMS}
        return {
            "anon": self.anonymous,
            "profile": self.profile,
            "client_kwargs": {k: v for k, v in client.items() if v},
            "config_kwargs": {"max_pool_connections": 64, **checksums},
            "use_listings_cache": False,
        }

    def options_for(self, url: str) -> dict[str, Any]:
        """Return the arguments with which fsspec opens a URL or local path."""
        return self.options() if url.startswith("s3://") else {}
