"""Draws programs and checks them for as long as one likes: `python -m tests.fuzz --programs 1000 --seed 0`.

With `--ops`, calls of the library's ops instead, all of them or those that are named: `--ops matmul routing`.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import OPS, finding
from tests.fuzz.check import Refused, check
from tests.fuzz.generator import Generator

MOST_SECONDS = 60
TARGETS = ("sm_80", "sm_89", "sm_90a")


def too_long(*_: object) -> None:
    raise TimeoutError("a program takes too long")


def main() -> int:
    """Check programs; those with findings are written to a folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the next ones follow")
    parser.add_argument("--size", type=int, default=14, help="most statements at the outermost level")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument(
        "--targets", nargs="*", default=None, help=f"any of {' '.join(TARGETS)}; drawn if left out"
    )
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument(
        "--ops", nargs="*", choices=list(OPS), help="calls of ops instead; all ops if none is named"
    )
    options = parser.parse_args()
    if options.ops is not None:
        return check_ops(options)
    started, found, refusals, done = time.monotonic(), 0, Counter[str](), 0
    for seed in range(options.seed, options.seed + options.programs):
        if time.monotonic() - started > options.seconds:
            break
        done += 1
        try:
            if hasattr(signal, "SIGALRM"):
                signal.signal(signal.SIGALRM, too_long)
                signal.alarm(MOST_SECONDS)
            program = Generator(seed, options.size).program()
            targets = options.targets or [random.Random(seed).choice(TARGETS)]
            finding = check(program, targets, text=seed % 8 == 0)
        except Refused as refusal:
            refusals[str(refusal).split("\n")[0]] += 1
            continue
        except Exception:
            finding = None
            print(f"seed {seed}: the check itself failed\n{traceback.format_exc()}")
            found += 1
            continue
        if finding is not None:
            found += 1
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{seed}.py").write_text(f"# {finding}\n{program.text}", encoding="utf-8")
            print(f"seed {seed}: {str(finding)[:300]}", flush=True)
    print(
        f"{done} programs in {time.monotonic() - started:.0f} s, {found} findings, {sum(refusals.values())} refused"
    )
    for text, count in refusals.most_common():
        print(f"  {count} x {text}")
    return 1 if found else 0


def check_ops(options: argparse.Namespace) -> int:
    """Check calls of ops, of each one with every seed, and print what is found."""
    started, found, done = time.monotonic(), 0, 0
    for seed in range(options.seed, options.seed + options.programs):
        for name in options.ops or OPS:
            if time.monotonic() - started > options.seconds:
                break
            done += 1
            try:
                said = finding(name, seed)
            except Exception:
                said = f"the check itself failed\n{traceback.format_exc()}"
            if said:
                found += 1
                print(f"{name}, seed {seed}: {said}", flush=True)
    print(f"{done} calls in {time.monotonic() - started:.0f} s, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
