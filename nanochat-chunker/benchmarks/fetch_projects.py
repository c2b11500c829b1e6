"""Fetches the sources of the fifteen Debian packages that the other benchmarks are run on.

    python fetch_projects.py FOLDER

Needs apt with `deb-src` lines and dpkg-source. `python fetch_projects.py --build-dependencies`
prints the packages with the headers of other projects that these sources include, as Debian
declares them: what a machine has that builds them (apt-get install $(python ...)).
"""

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "abseil eigen3 fmtlib googletest leveldb libjsoncpp nlohmann-json3 poco protobuf re2 rocksdb "
    "snappy spdlog tinyxml2 yaml-cpp"
).split()
BUILD_DEPENDENCIES = (
    "default-libmysqlclient-dev libbenchmark-dev libbz2-dev libexpat1-dev libfmt-dev "
    "libgflags-dev libgmock-dev libgtest-dev liblz4-dev libpcre3-dev libpq-dev libsnappy-dev "
    "libsqlite3-dev libssl-dev libsystemd-dev libzstd-dev unixodbc-dev zlib1g-dev"
).split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--build-dependencies", action="store_true")
    options = parser.parse_args()
    if options.build_dependencies:
        print(" ".join(BUILD_DEPENDENCIES))
        return 0
    if options.folder is None:
        parser.error("give the folder to fetch into")
    options.folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["apt-get", "source", "--only-source", "-q", *PACKAGES], cwd=options.folder, check=False
    )
    if done.returncode:
        print("apt-get source failed; are there deb-src lines in apt's sources?", file=sys.stderr)
        return 1
    for archive in options.folder.iterdir():
        if archive.is_file():
            archive.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
