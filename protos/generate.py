"""Regenerate the protobuf stubs beside this file, or with ``--check`` say whether they are up to date."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
SERVICES = ("federation",)  # these have calls
MESSAGES = ("secure_sum",)  # these have none
NAMES = (
    *(f"{name}{end}" for name in SERVICES for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")),
    *(f"{name}{end}" for name in MESSAGES for end in ("_pb2.py", "_pb2.pyi")),
)


def generate(out: Path) -> None:
    """Write the stubs of every file under ``out/fedveil/protos``."""
    for names, grpc in ((SERVICES, [f"--grpc_python_out={out}"]), (MESSAGES, [])):
        arguments = ["protoc", f"-Ifedveil/protos={HERE}", f"--python_out={out}", f"--pyi_out={out}", *grpc]
        if protoc.main([*arguments, *(f"fedveil/protos/{name}.proto" for name in names)]):
            raise SystemExit("protoc failed")


def main() -> int:
    """Generate, and compare or copy."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = []
        for name in NAMES:
            made = (Path(folder) / "fedveil" / "protos" / name).read_bytes()
            kept = HERE / name
            if "--check" in sys.argv:
                if not kept.exists() or kept.read_bytes() != made:
                    stale.append(name)
            else:
                kept.write_bytes(made)
    if stale:
        print(f"stale: {', '.join(stale)}; run `make protos`")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
