"""Checks that wheels are what their names say: python packaging/check_wheel.py WHEEL ...

auditwheel judges glibc's symbols and foreign libraries by the policy of the platform tag. Beyond it: one library and
one extension, for the right processor and Python, found through $ORIGIN, and nothing but glibc under them.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
NAME = re.compile(r"mdrt-[\d.]+-cp(\d+)-cp\1-manylinux2014_(\w+)\.manylinux_2_17_\2\.whl")


class Dynamic:
    """What the dynamic linker sees of a shared library."""

    def __init__(self, data: bytes) -> None:
        elf = ELFFile(io.BytesIO(data))
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
        self.machine = str(elf["e_machine"])
        self.needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        self.runpath = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
        self.soname = [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"]
        versions = elf.get_section_by_name(".gnu.version_r")
        self.versions = {version.name for _, uses in versions.iter_versions() for version in uses}


def faults(wheel: Path) -> list[str]:
    """Sentences about what is wrong with a wheel; none if all is well."""
    name = NAME.fullmatch(wheel.name)
    if name is None:
        return ["the name has not the tags of a release"]
    python, architecture = name.groups()
    extension = f"mdrt/_core.cpython-{python}-{architecture}-linux-gnu.so"
    with zipfile.ZipFile(wheel) as archive:
        libraries = {file: Dynamic(archive.read(file)) for file in archive.namelist() if ".so" in file}
    if set(libraries) != {"mdrt/lib/libmdrt.so", extension}:
        return [f"libraries inside: {', '.join(sorted(libraries))}"]
    found = []
    for file, library in libraries.items():
        foreign = library.needed - GLIBC
        if library.machine != MACHINES[architecture]:
            found.append(f"{file} is for {library.machine}")
        if foreign != ({"libmdrt.so"} if file == extension else set()):
            found.append(f"{file} needs {', '.join(sorted(foreign)) or 'nothing'} beside glibc")
    if libraries[extension].runpath != ["$ORIGIN/lib"]:
        found.append(f"{extension} looks for libraries in {libraries[extension].runpath}")
    if libraries["mdrt/lib/libmdrt.so"].soname != ["libmdrt.so"]:
        found.append(f"the library's soname is {libraries['mdrt/lib/libmdrt.so'].soname}")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    verdict = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f'platform tag:\n"manylinux_2_17_{architecture}"' not in verdict:
        found.append(f"auditwheel says: {verdict}")
    used = ", ".join(sorted(set().union(*(library.versions for library in libraries.values()))))
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, symbols of {used}")
    return found


def main() -> int:
    """Prints a line per wheel and per fault; 1 if there is a fault."""
    wrong = [f"{path}: {fault}" for path in sys.argv[1:] for fault in faults(Path(path))]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong or len(sys.argv) == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
