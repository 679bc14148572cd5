"""The one seam to files: local paths and ``s3://bucket/key`` by the same functions.

What is published is there at once or not at all, whatever process is killed; a single file is on the disk before it
appears, so that a power cut leaves it whole too. S3 settings come from the standard AWS_*
environment alone, AWS_ENDPOINT_URL among them.
"""

from fer_scale._deleting import delete, delete_files
from fer_scale._files import (
    FileInfo,
    create_bytes,
    exists,
    filesystem,
    is_dir,
    is_empty,
    list_files,
    open_input,
    read_bytes,
    read_json,
    write_bytes,
)
from fer_scale._folders import check_output, fetch_dir, publishing, writing
from fer_scale._paths import PathLike, is_s3, join, name, normal
from fer_scale._s3 import CONNECTIONS, is_outage, limit_requests, requests_made

__all__ = [
    "CONNECTIONS",
    "FileInfo",
    "PathLike",
    "check_output",
    "create_bytes",
    "delete",
    "delete_files",
    "exists",
    "fetch_dir",
    "filesystem",
    "is_dir",
    "is_empty",
    "is_outage",
    "is_s3",
    "join",
    "limit_requests",
    "list_files",
    "name",
    "normal",
    "open_input",
    "publishing",
    "read_bytes",
    "read_json",
    "requests_made",
    "write_bytes",
    "writing",
]
