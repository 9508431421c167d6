#!/usr/bin/env python3
"""Run a Python program on a GPU that isn't there: a CUDA build of PyTorch over a stub of the CUDA runtime.

    launch.py PYTHON [ARGUMENT ...]

PYTHON is an interpreter whose torch is a CUDA build (on Linux, x86-64). All of PyTorch's host code runs as it would on
the device: the kernels it picks, what it saves for backward, its caching allocator. No kernel runs; values are garbage,
and what is read back is zero, or true. torch.cuda.max_memory_allocated(), max_memory_reserved(), memory_stats() and
snapshots are those of the device, but for what libraries take for themselves (cuDNN's and NCCL's workspaces, the CUDA
context). runtime.c describes STUB_BYTES, STUB_SM, STUB_PROCESSORS, STUB_THREADS and STUB_LOG. Needs a C compiler (CC,
or cc), nm, and the headers of a CUDA toolkit, which PyTorch's own dependencies bring.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("runtime.c", "driver.c", "nvml.c", "launch.py")
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")
ANSWERED = r"libcudart|libcublas|libcusolver|libcusparse|libcudnn|libcurand|libcufft"
DRIVER = (
    r"cu(?:Ctx|Dev|Mem|Module|Func|Launch|Get|Init|Driver|Tensor|Link|Stream|Green|Multicast|Logs|Occupancy|Pointer)\w*"
)


def undefined(library: Path) -> dict[str, str]:
    """Return every undefined symbol of a library, and the library that it is asked of."""
    listing = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    return {m[1]: m[2] for m in re.finditer(r"^\s*U (\w+)(?:@+(\S+))?$", listing, re.M)}


def of_runtime(libraries: list[Path]) -> set[str]:
    """Return what these libraries ask of CUDA's runtime, cuBLAS, cuDNN and their like."""
    symbols = {name: of for library in libraries for name, of in undefined(library).items()}
    return {name for name, of in symbols.items() if of and re.search(ANSWERED, of)}


def of_driver(libraries: list[Path], compiler: Path) -> set[str]:
    """Return what is asked of the driver: by symbols of the run-time compiler's library, by names in the others.

    Triton's launcher, whose source is beside it, asks too: some of PyTorch's own kernels are Triton's.
    """
    names = {name for name in undefined(compiler) if re.match(r"cu[A-Z]", name)}
    for library in libraries:
        names |= {m[1].decode() for m in re.finditer(rb"\0(" + DRIVER.encode() + rb")(?=\0)", library.read_bytes())}
    triton = compiler.parents[2] / "triton" / "backends" / "nvidia" / "driver.c"
    return names | (set(re.findall(rf"\b{DRIVER}", triton.read_text())) if triton.exists() else set())


def defined(source: Path) -> set[str]:
    """Return the functions that a source of the stub defines itself."""
    text = source.read_text()
    return set(re.findall(r"^[\w ]*?[ *]+(_{0,2}cu\w+)\(", text, re.M)) | set(re.findall(r"MAKES\((\w+)\)", text))


def headers(package: Path) -> Path:
    """Return the folder of CUDA's headers."""
    for folder in (*sorted((package.parent / "nvidia").glob("cu*/include")), Path("/usr/local/cuda/include")):
        if (folder / "crt" / "host_defines.h").exists():
            return folder
    sys.exit("launch.py: no CUDA headers (driver_types.h with crt/host_defines.h) beside torch or in /usr/local/cuda")


def compile_stub(package: Path, folder: Path) -> None:
    """Compile the stub's three libraries for the PyTorch at ``package``; what it does not define succeeds."""
    libraries = [package / "lib" / name for name in LIBRARIES if (package / "lib" / name).exists()]
    rest = {
        "rest.inc": of_runtime(libraries) - defined(HERE / "runtime.c"),
        "driver_rest.inc": of_driver(libraries[:2], package / "lib" / "libcaffe2_nvrtc.so")
        - defined(HERE / "driver.c"),
    }
    for name, functions in rest.items():
        (folder / name).write_text("".join(f"SUCCESS({function})\n" for function in sorted(functions)))
    build = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-w", f"-I{headers(package)}", f"-I{folder}"]
    for source, library in (("driver.c", "libcuda.so.1"), ("nvml.c", "libnvidia-ml.so.1"), ("runtime.c", "runtime.so")):
        subprocess.run([*build, "-o", folder / library, HERE / source, "-lpthread", "-ldl"], check=True)


def environment(python: str) -> dict[str, str]:
    """Return the variables under which ``python`` finds the stub, which is compiled where it isn't yet."""
    what = "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, torch.version.cuda)"
    found = subprocess.run([python, "-c", what], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"launch.py: {python} can't import torch: {found.stderr.strip().splitlines()[-1]}")
    package, version, cuda = found.stdout.split()
    if cuda == "None":
        sys.exit(f"launch.py: torch {version} of {python} is no CUDA build")
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES) + package.encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"cuda-stub-{os.getuid()}-{version}-{digest[:12]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            compile_stub(Path(package), Path(made))
            os.chmod(made, 0o700)
            if not folder.exists():
                os.rename(made, folder)
                os.mkdir(made)  # what the context removes
    if folder.stat().st_uid != os.getuid():
        sys.exit(f"launch.py: {folder} is somebody else's; set TMPDIR to a folder of yours")
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths), "LD_PRELOAD": str(folder / "runtime.so")}


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    python = sys.argv[1]
    os.environ |= environment(python)
    os.execvp(python, [python, *sys.argv[2:]])


if __name__ == "__main__":
    main()
