"""Copies about 8,000 files of this machine into files/, of each extension as many as the square root of how many there are."""
import hashlib
import math
import os
import shutil
import sys
import sysconfig
from pathlib import Path

PLACES = ["/usr/share", "/usr/lib", "/usr/include", "/usr/bin", "/etc", sysconfig.get_paths()["stdlib"]]
PLACES += [os.environ.get("RUSTUP_HOME", "~/.rustup"), os.environ.get("CARGO_HOME", "~/.cargo") + "/registry/src"]
WANTED, LARGEST = 8000, 4 << 20


def kind(name):
    extension = os.path.splitext(name)[1][1:].lower()
    return extension if len(extension) <= 8 and extension.isalnum() and not extension.isdigit() else ""


def draw(path):
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()


kinds = {}
for place in PLACES:
    for folder, _, names in os.walk(os.path.expanduser(place)):
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path) and not os.path.islink(path) and 0 < os.path.getsize(path) <= LARGEST:
                kinds.setdefault(kind(path), set()).add(path)
roots = sum(math.sqrt(len(paths)) for paths in kinds.values())
to = Path("files")
to.mkdir(exist_ok=False)
for extension, paths in sorted(kinds.items()):
    share = math.ceil(WANTED * math.sqrt(len(paths)) / roots)
    for path in sorted(paths, key=draw)[:share]:
        try:
            shutil.copyfile(path, to / (draw(path)[:20] + (f".{extension}" if extension else "")))
        except OSError as error:
            print(f"left out: {error}", file=sys.stderr)
print(len(list(to.iterdir())), "files of", len(kinds), "kinds")
