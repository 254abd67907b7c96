"""Are the tables and artefacts of two clones the same, byte for byte?

`python benchmarks/same_outputs.py CLONE OTHER [PROFILE]`; exit 1 if not.
"""
import sys
from pathlib import Path

def files(clone: str, profile: str) -> dict[str, bytes]:
    "Relative path -> bytes; stage.json (durations) and the SQLite record (order of arrival) are left out."
    root = Path(clone)/"outputs"/profile
    return {
        str(p.relative_to(root)): p.read_bytes()
        for part in ("tables", "artifacts")
        for p in (root/part).rglob("*")
        if p.is_file() and p.name != "stage.json" and ".sqlite" not in p.name
        and ".work" not in str(p.relative_to(root))
    }

def main(clone: str, other: str, profile: str = "tiny") -> int:
    a, b = files(clone, profile), files(other, profile)
    differ = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    print(
        f"{len(a.keys() & b.keys()) - sum(k in a and k in b for k in differ)} files are the same, "
        f"{len(differ)} differ or are in one clone only",
        *differ[:40], sep="\n",
    )
    return int(bool(differ) or not a)

if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
