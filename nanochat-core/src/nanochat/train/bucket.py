"""Where checkpoints go beside the local folder: any fsspec address, a bare name being a GCS bucket.

Nothing here imports fsspec before an address is opened.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.errors import NanochatError, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BUCKET_VARIABLE = "NANOCHAT_GCS_CHECKPOINT_BUCKET"
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_BARE = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
# What has no folders: making one there could make a bucket that the user has misspelt.
_OBJECT_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "oci", "r2"}


def bucket_address(given: str) -> str:
    """What `--checkpoint-bucket` or the variable means as an address, "" if neither is set.

    Raises UsageError for what is neither an address, a folder nor a bucket's name.
    """
    given = (given or os.environ.get(BUCKET_VARIABLE, "")).strip().rstrip("/")
    if not given or "://" in given:
        return given
    if given.startswith(("/", ".", "~")):
        return Path(given).expanduser().resolve().as_uri()
    if _BARE.fullmatch(given):
        return f"gs://{given}"
    raise UsageError(
        f"the checkpoint bucket {given!r} is no bucket's name and no address",
        f"Give gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or a folder as --checkpoint-bucket or in "
        f"{BUCKET_VARIABLE}",
    )


def open_address(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address and the path in it. Touches no network where that can wait.

    Raises UsageError if what reads such addresses is not installed, or there is no such thing.
    """
    from fsspec.core import url_to_fs

    protocol = address.split("://")[0]
    options: dict[str, Any] = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        filesystem, path = url_to_fs(address, **options)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        raise UsageError(
            f"checkpoints cannot go to {address}: {error}",
            f"pip install 'nanochat-core[{extra}]'" if extra else "Install what it names",
        ) from error
    except Exception as error:
        raise UsageError(
            f"checkpoints cannot go to {address}: {reason(error)}",
            f"Mend --checkpoint-bucket or {BUCKET_VARIABLE}",
        ) from error
    # These log tracebacks of failures that are raised as well, and that we tell in one line.
    for library in ("fsspec", "gcsfs", "google.auth", "s3fs"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    return filesystem, str(path).rstrip("/")


def has_folders(filesystem: AbstractFileSystem) -> bool:
    """True if folders must be made before files are written into them."""
    protocol = filesystem.protocol
    return (
        not _OBJECT_STORES & {protocol}
        if isinstance(protocol, str)
        else not (_OBJECT_STORES & set(protocol))
    )


def reason(error: BaseException) -> str:
    """What went wrong with a file system, in one line without its addresses' noise."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__


def unusable(address: str, doing: str, error: Exception) -> NanochatError:
    """The error for a bucket that a run cannot use, with what mends it."""
    told = reason(error)
    if isinstance(error, TimeoutError):
        remedy = "Check the network, then run the command again"
    elif isinstance(error, FileNotFoundError):
        told = "there is no such bucket, or this account may not see it"
        remedy = f"Make it, or mend --checkpoint-bucket or {BUCKET_VARIABLE}"
    elif isinstance(error, PermissionError) or re.search(
        r"\b(401|403|forbidden|denied|credentials?|anonymous)\b", told, re.IGNORECASE
    ):
        remedy = (
            "Its account needs to create, read, list and delete objects there (on Google Cloud "
            "the role Storage Object User; `gcloud auth application-default login` signs in)"
        )
    else:
        remedy = f"Mend it, or train without {BUCKET_VARIABLE} and --checkpoint-bucket"
    return UsageError(f"{address} cannot be {doing}: {told}", remedy)
