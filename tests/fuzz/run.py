"""Builds libmdrt and fuzz_bundle, with sanitizers or as shipped, and runs them on seeds made here.

python tests/fuzz/run.py --build DIR [--library DIR] [--shipped] [--container 20000] [--graph 5000] [--seed 1]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SANITIZERS = "address,undefined"
SANITIZE = f"-fsanitize={SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer -g"

sys.path.insert(0, str(HERE.parent))
from mini_bundle import tiny_bundle  # noqa: E402


def write_seeds(folder):
    """Complete bundles, and such of bare components, on which changed graphs meet fewer rules; each with int8 too."""
    complete, bare = [], []
    for int8 in (False, True):
        for paths, name in ((complete, "complete"), (bare, "bare")):
            bundle = tiny_bundle(int8)
            if name == "bare":
                del bundle.document["pipeline"], bundle.document["tokenizer"]
                unused = ("schedules/", "tokenizer/")
                bundle.tensors = {n: t for n, t in bundle.tensors.items() if not n.startswith(unused)}
            paths.append(folder / f"{name}{'-int8' if int8 else ''}.mdrt")
            paths[-1].write_bytes(bundle.to_bytes())
    return complete, bare


def build(folder, library=None, source=ROOT, is_sanitized=True, jobs=2):
    """Returns the fuzzer; the library is built from `source`, in the folder `library`, where much may lie already."""
    folder.mkdir(parents=True, exist_ok=True)
    library = (library or folder / "lib").resolve()
    flags = SANITIZE if is_sanitized else ""
    kind = (
        [f"-DMDRT_SANITIZE={SANITIZERS}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
        if is_sanitized
        else ["-DCMAKE_BUILD_TYPE=Release"]
    )
    subprocess.run(["cmake", "-S", source, "-B", library, *kind], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["cmake", "--build", library, "--target", "mdrt", f"-j{jobs}"], check=True, stdout=subprocess.DEVNULL
    )
    program = folder / "fuzz_bundle"
    compiler = os.environ.get("CXX", "g++")
    command = [
        compiler,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-O1",
        *flags.split(),
        f"-I{source / 'csrc/include'}",
        HERE / "fuzz_bundle.cc",
    ]
    command += [
        HERE / "mutate.cc",
        "-o",
        program,
        f"-L{library}",
        "-lmdrt",
        f"-Wl,-rpath,{library}",
        "-pthread",
    ]
    subprocess.run(command, check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--library", type=Path, help="where the library is built; default: in DIR")
    parser.add_argument("--shipped", action="store_true", help="the library as it is shipped, without sanitizers")
    parser.add_argument("--container", type=int, default=20000)
    parser.add_argument("--graph", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    program = build(arguments.build, arguments.library, is_sanitized=not arguments.shipped)
    complete, bare = write_seeds(arguments.build)
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    code = 0
    for kind, seeds in (("container", complete + bare), ("graph", bare)):
        command = [program, *seeds, f"--{kind}", str(getattr(arguments, kind)), "--seed", str(arguments.seed)]
        code |= subprocess.run(command, env=environment, check=False).returncode
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
