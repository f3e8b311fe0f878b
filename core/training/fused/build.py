"""Compile the kernel ahead of time: `python -m core.training.fused.build --out FOLDER`.

For images whose machines have no compiler. Paddle must be installed: its OpenMP runtime is linked. All variants of this
architecture are built, so that the folder suits every CPU of it; `load(..., prebuilt=FOLDER)` picks the best one that a
machine can run.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.training.fused.library import COMPILE_LIMIT_S, COMPILERS, Unavailable, build, find_compiler, variants


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m core.training.fused.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made where it is missing")
    parser.add_argument("--compiler", metavar="COMMAND", help=f"the first of {', '.join(COMPILERS)} by default")
    options = parser.parse_args(arguments)
    try:
        compiler = find_compiler([options.compiler] if options.compiler else COMPILERS)
        if not variants():
            raise Unavailable("the kernel was not written for this system")
        for variant in variants():
            began = time.perf_counter()
            path = build(options.out, variant, compiler=compiler, limit_s=COMPILE_LIMIT_S)
            sys.stdout.write(f"{path} ({path.stat().st_size} bytes, {time.perf_counter() - began:.1f} s)\n")
    except (Unavailable, OSError) as reason:
        sys.stderr.write(f"nothing more was built: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
