"""Makes the corpus's PTX again: `python make.py triton [NAME...]` or `python make.py nvcc [NAME...]`.

A Triton of another version than the corpus's own writes to a folder of its own, `ptx/triton-VERSION`: by default the
programs that are there already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PTX = HERE / "ptx"
TRITON_VERSION = "3.9.0"


def relative_names(ptx: str) -> str:
    """Strip the directories of `.file` directives: `sources/x.py` for ours, the bare name for a compiler's own."""

    def replace(match: re.Match[str]) -> str:
        name = Path(match["path"]).name
        known = (HERE / "sources" / name).exists()
        return f'{match["head"]}"{"sources/" if known else ""}{name}"'

    two_parts = re.sub(r'(\.file\s+\d+\s+)"([^"]*)"\s+"([^"]*)"', r'\1"\2/\3"', ptx)
    return re.sub(r'(?P<head>\.file\s+\d+\s+)"(?P<path>[^"]*)"', replace, two_parts)


def without_directory(ptx: str) -> str:
    """Overwrite this directory's name in debug information, byte for byte, so that all offsets stay right."""
    name = str(HERE)

    def directives(text: str) -> str:
        return ".b8 " + ",".join(str(byte) for byte in text.encode())

    return ptx.replace(directives(name), directives("." + "/" * (len(name) - 1)))


def write_facts(folder: Path, name: str, facts: dict) -> None:
    """Keep what the compiler says about a launch in the folder's `facts.json`, sorted by program."""
    path = folder / "facts.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    table[name] = facts
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
    path.write_text("{\n" + lines + "\n}\n")


def load_relative(path: str) -> ModuleType:
    """Import a source under its relative name, which Triton then writes into the PTX and its debug information."""
    os.chdir(HERE)
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    sys.modules[module.__name__] = module
    exec(compile(Path(path).read_text(), path, "exec"), module.__dict__)
    return module


def make_triton(wanted: list[str]) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    folder = PTX if triton.__version__ == TRITON_VERSION else PTX / f"triton-{triton.__version__}"
    if folder != PTX:
        folder.mkdir(exist_ok=True)
        wanted = wanted or [path.stem for path in folder.glob("*.ptx")]
    for path in sorted((HERE / "sources").glob("triton_*.py")):
        for name, variant in load_relative(f"sources/{path.name}").VARIANTS.items():
            if wanted and name not in wanted:
                continue
            options = {"enable_fp_fusion": True} | variant
            kernel, arch, args = options.pop("kernel"), options.pop("arch"), options.pop("args")
            signature: dict[str, str] = {}
            constants: dict[str, object] = {}
            attributes = {}
            for i, parameter in enumerate(kernel.params):
                if parameter.name not in args:
                    signature[parameter.name] = "constexpr"
                    constants[parameter.name] = parameter.default
                elif isinstance(args[parameter.name], str) and not parameter.is_constexpr:
                    kind, _, divisor = args[parameter.name].partition(":")
                    signature[parameter.name] = kind
                    if divisor:
                        attributes[(i,)] = [["tt.divisibility", int(divisor)]]
                else:
                    signature[parameter.name] = "constexpr"
                    constants[parameter.name] = args[parameter.name]
            compiled = triton.compile(
                ASTSource(kernel, signature, constants, attributes),
                target=GPUTarget("cuda", arch, 32),
                options=options,
            )
            ptx = relative_names(compiled.asm["ptx"])
            (folder / f"{name}.ptx").write_text(ptx)
            meta = compiled.metadata
            descriptors = [
                {key: d[key] for key in ("swizzle", "elem_size", "elem_type", "block_size")}
                for d in (getattr(meta, "tensordesc_meta", None) or [])
            ]
            write_facts(
                folder,
                name,
                {
                    "kernel": meta.name,
                    "threads": meta.num_warps * 32,
                    "cluster": meta.num_ctas,
                    "shared_bytes": meta.shared,
                    "scratch_bytes": meta.global_scratch_size,
                    "descriptors": descriptors,
                },
            )
            print(f"{name}: {len(ptx)} bytes")


def make_nvcc(wanted: list[str]) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("nvcc was not found on PATH; install a CUDA toolkit to make these programs again")
    for source in sorted((HERE / "sources").glob("*.cu")):
        name = source.stem
        if wanted and name not in wanted:
            continue
        text = source.read_text()
        arch = re.search(r"^// target: (\w+)", text, re.MULTILINE)
        flags = re.search(r"^// flags: (.*)", text, re.MULTILINE)
        if arch is None:
            raise SystemExit(
                f"{source.name}: expected a line '// target: sm_80', which names the architecture"
            )
        out = PTX / f"{name}.ptx"
        command = [
            nvcc,
            "-ptx",
            f"-arch={arch[1]}",
            "-std=c++17",
            *(flags[1].split() if flags else []),
            "-lineinfo",
        ]
        command += [f"sources/{source.name}", "-o", f"ptx/{name}.ptx"]
        subprocess.run(command, cwd=HERE, check=True)
        out.write_text(without_directory(relative_names(out.read_text())))
        print(f"{name}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    makers = {"triton": make_triton, "nvcc": make_nvcc}
    if len(sys.argv) < 2 or sys.argv[1] not in makers:
        raise SystemExit(__doc__)
    makers[sys.argv[1]](sys.argv[2:])
