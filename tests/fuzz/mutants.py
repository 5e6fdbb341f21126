"""Does the reject table notice a missing check? Drops one check of the loader at a time and counts the mutants caught.

    python tests/fuzz/mutants.py --build DIR

Works on a copy of the sources. Prints one line per mutant; the exit status is 0 when all were caught.
"""

import argparse
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# name, file, what stands there, what the careless author wrote instead
MUTANTS = [
    ("header length is not capped", "bundle.cc", "length > static_cast<uint64_t>(kMaxHeaderBytes - 8)", "false"),
    ("header may end beyond the file", "bundle.cc", "bundle_.header_bytes_ > size", "false"),
    ("data may begin anywhere", "bundle.cc", "bundle_.header_bytes_ % kAlignment != 0", "false"),
    ("tensors may overlap", "bundle.cc", "begin.integer() != data_bytes_", "false"),
    ("length need not fit the shape", "bundle.cc", "end.integer() - begin.integer() != bytes", "false"),
    ("sizes may wrap", "bundle.cc", "if (__builtin_mul_overflow(bytes, item.integer(), &bytes))",
     "if (__builtin_mul_overflow(bytes, item.integer(), &bytes) && false)"),
    ("data may end beyond the file", "bundle.cc", "if (data_bytes_ > have)", "if (false)"),
    ("trailing bytes are ignored", "bundle.cc", "if (data_bytes_ < have)", "if (false)"),
    ("tensors may have any length", "bundle.cc", "if (bytes % kAlignment != 0) fields", "if (false) fields"),
    ("checksums are not compared", "bundle.cc", "if (found != tensor.crc32c)", "if (false)"),
    ("keys may occur twice", "json.cc", "if (twin == keys.end()) return;", "return;"),
    ("depth is not limited", "json.cc", "if (depth > max_depth_)", "if (false)"),
    ("any bytes are UTF-8", "json.cc", "if (!fits) refuse", "if (false) refuse"),
    ("tensors need no owner", "fields.cc", "if (idle != claimed_.end())", "if (false)"),
    ("merges may name any token", "document.cc", "if (ids[i] < 0 || ids[i] >= info.vocab_size)", "if (false)"),
    ("schedules may hold NaN", "document.cc", "if (!std::isfinite(x[i]))", "if (false)"),
    ("components need not fit the pipeline", "document.cc", "if (channels != 0 && shape.back() != channels)", "if (false)"),  # noqa: E501
    ("nodes may use later values", "graph.cc", "value < 0 || value >= own", "value < 0 || value >= graph.value_count()"),  # noqa: E501
    ("stored shapes are trusted", "graph.cc", "if (want == weight.shape) return;", "return;"),
    ("attributes have no range", "graph.cc", "if (fits) continue;", "continue;"),
    ("weights may be idle", "graph.cc", "if (idle != used.end())", "if (false)"),
    ("ids may be added up", "graph.cc", "if (is_ids != wants_ids)", "if (false)"),
    ("heads need not divide", "ops.cc", "if (channels % heads != 0)", "if (false)"),
    ("kernels may exceed the input", "ops.cc", "if (room < 0)", "if (false)"),
    ("int8 may stand without scales", "quantised.cc", "if (dtype == DType::int8 && !is_quantised(node))", "if (false)"),
    ("scales may stand without int8", "quantised.cc", "if (dtype != DType::int8 && is_quantised(node))", "if (false)"),
    ("sums may be floats", "quantised.cc", "if (input.is_integer) return dtype == DType::int32 ?", "if (input.is_integer) return true ?"),  # noqa: E501
    ("scales may be integers", "quantised.cc", "return dtype == DType::fp32 ?", "return true ?"),
    ("int8 inputs may come alone", "quantised.cc", "if (count == (is_product(node) ? kInputScale : kWeightScale) + 1)", "if (false)"),  # noqa: E501
    ("every convolution may be dynamic", "quantised.cc", "count <= kInputScale && !takes_one_pixel(node)", "false"),
    ("sums may overflow", "quantised.cc", "if (products(node) > kMaxProducts)", "if (false)"),
    ("scales may be anything", "quantised.cc", "if (!(scales[i] >= FLT_MIN && scales[i] <= FLT_MAX))", "if (false)"),
    ("scales may be infinite", "quantised.cc", " && scales[i] <= FLT_MAX", ""),
    ("sums and zero points have no range", "quantised.cc", "if (values[i] < low || values[i] > high)", "if (false)"),
    ("every format may hold int8", "bundle.cc", "if (least > format_minor_)", "if (false)"),
    ("format 1.1 may hold int8 weights alone", "quantised.cc", "!multiplies_integers(node) ? 2 : 1", "false ? 2 : 1"),
]  # fmt: skip


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check(path):
    """Runs the table against one library; the number of rows that came out wrong."""
    sys.path.insert(0, str(HERE.parent))
    from reject_rows import BASE, BUNDLE, ROWS, SOUND

    lib = ctypes.CDLL(path)
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    lib.mdrt_open_memory.argtypes = [pointer, size, pointer, ctypes.POINTER(pointer), text, size]
    lib.mdrt_verify.argtypes = lib.mdrt_close.argtypes = [pointer]

    def status_of(data, verify=False):
        memory = ctypes.create_string_buffer(len(data) + 64)
        address = -(-ctypes.addressof(memory) // 64) * 64
        ctypes.memmove(address, data, len(data))
        model, message = pointer(), ctypes.create_string_buffer(512)
        status = lib.mdrt_open_memory(address, len(data), None, ctypes.byref(model), message, len(message))
        if verify and status == 0:
            status = lib.mdrt_verify(model)
        lib.mdrt_close(model)
        return status, message.value.decode()

    wrong = []
    for row in ROWS:
        status, message = status_of(row.file(sound=False))
        if status != row.status or any(word not in message for word in row.says):
            wrong.append(row.name)
        if row.good and status_of(row.file(sound=True), verify=True)[0] != 0:
            wrong.append(f"twin of {row.name}")
    data = bytearray(SOUND)
    data[SOUND.index(BASE.tensors["unet/conv_in.weight"].data[:64])] ^= 1
    if status_of(bytes(data), verify=True)[0] != BUNDLE or status_of(SOUND, verify=True)[0] != 0:
        wrong.append("flipped bit")
    say(", ".join(wrong[:3]) if wrong else "nothing")
    return len(wrong)


def build(source, folder):
    subprocess.run(["cmake", "--build", folder, "--target", "mdrt", "-j2"], check=True, stdout=subprocess.DEVNULL)
    return folder / "libmdrt.so"


def noticed(library):
    """What a fresh process says about this library; a crash or a hang is noticed too."""
    try:
        result = subprocess.run(
            [sys.executable, __file__, "--check", library], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return True, "hangs"
    return result.returncode != 0, result.stdout.strip() or f"crashes ({result.returncode})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        return min(check(arguments.check), 100)
    source, folder = arguments.build / "source", arguments.build / "lib"
    shutil.rmtree(source, ignore_errors=True)
    for part in ("csrc", "cmake", "CMakeLists.txt", "mdrt/__init__.py"):
        (source / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, source / part)
    subprocess.run(
        ["cmake", "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"], check=True, stdout=subprocess.DEVNULL
    )
    caught, text = noticed(build(source, folder))
    if caught:
        say(f"the unchanged library fails already: {text}")
        return 2
    score = 0
    for name, file, old, new in MUTANTS:
        path = source / "csrc" / file
        sound = path.read_text()
        if sound.count(old) != 1:
            say(f"{name}: {file} has {sound.count(old)} times {old!r}; update this list")
            continue
        path.write_text(sound.replace(old, new))
        try:
            caught, text = noticed(build(source, folder))
        finally:
            path.write_text(sound)
        score += caught
        say(f"{'caught' if caught else 'MISSED'}: {name}: {text}")
    say(f"{score}/{len(MUTANTS)} caught")
    return 0 if score == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
