"""Compare the pins of constraints.txt with known vulnerabilities: `python .ci/advisories.py`, a part of `make check`.

No network: the list is .ci/advisories.toml, made from a clone of PyPA's advisory database by

    git clone --depth 1 <pypa/advisory-database on GitHub>
    python .ci/advisories.py --refresh advisory-database

It knows what that clone knew, of the packages that are pinned; its head says of which day that is. What is heard of
later goes into .ci/later-advisories.toml, and an advisory that doesn't concern this project into
.ci/accepted-advisories.toml, with the reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
PINS = HERE.parent / "constraints.txt"
LIST, LATER, ACCEPTED = (HERE / f"{kind}advisories.toml" for kind in ("", "later-", "accepted-"))


def read_pins(path: Path) -> dict[str, str]:
    """Return package -> version."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def affecting(pins: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """Return the advisories that the pinned versions are affected by: id -> package and version."""
    return {
        advisory: f"{package}=={pins[package]}"
        for package, advisories in known.items()
        if package in pins
        for advisory, ranges in advisories.items()
        if any(SpecifierSet(one).contains(pins[package], prereleases=True) for one in ranges)
    }


def ranges_of(affected: Mapping[str, Any]) -> list[str]:
    """Return the affected versions as version specifiers."""
    found = []
    for kind in affected.get("ranges", ()):
        if kind["type"] != "ECOSYSTEM":
            continue
        since = ""
        for event in kind["events"]:
            (name, version), *_ = event.items()
            if name == "introduced":
                since = f">={version}"
            else:
                found.append(f"{since},{'<' if name == 'fixed' else '<='}{version}")
                since = ""
        found += [since] if since else []
    return found or [f"=={version}" for version in affected.get("versions", ())]


def refresh(clone: Path) -> None:
    """Write the list anew from a clone of the database."""
    import yaml

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(clone), *command], capture_output=True, text=True, check=True).stdout

    pins = read_pins(PINS)
    commit, day = git("log", "-1", "--format=%H %cs").split()
    wanted = [name for name in git("ls-tree", "-r", "--name-only", "HEAD", "vulns/").splitlines()
              if canonicalize_name(Path(name).parent.name) in pins]  # fmt: skip
    known: dict[str, dict[str, list[str]]] = {}
    for name in wanted:
        entry = yaml.safe_load(git("show", f"HEAD:{name}"))
        for affected in entry.get("affected", ()) if "withdrawn" not in entry else ():
            package = canonicalize_name(affected["package"]["name"])
            if package in pins and (ranges := ranges_of(affected)):
                known.setdefault(package, {}).setdefault(entry["id"], []).extend(ranges)
    lines = [f"# PyPA's advisory database, commit {commit} of {day}; made by `.ci/advisories.py --refresh`."]
    for package in sorted(known):
        lines += ["", f'["{package}"]', *(f'"{key}" = {known[package][key]!r}' for key in sorted(known[package]))]
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Check, or refresh."""
    given = argparse.ArgumentParser(description="Compare constraints.txt with known vulnerabilities.")
    given.add_argument("--refresh", type=Path, metavar="CLONE", help="make the list anew from a clone of the database")
    options = given.parse_args()
    if options.refresh is not None:
        refresh(options.refresh)
    accepted = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))
    pins, lists = read_pins(PINS), (tomllib.loads(path.read_text(encoding="utf-8")) for path in (LIST, LATER))
    found = {key: pin for known in lists for key, pin in affecting(pins, known).items()}
    faults = [f"{pin} is affected by {key}: raise the pin, or name it with the reason in {ACCEPTED.name}"
              for key, pin in found.items() if key not in accepted]  # fmt: skip
    faults += [f"{key} in {ACCEPTED.name} affects no pin any more: remove it" for key in accepted.keys() - found.keys()]
    head = LIST.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    sys.stdout.write("\n".join([*faults, f"{len(found)} advisories affect pins, {len(accepted)} accepted. {head}\n"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
