"""`python -m masksparse_deploy.checker` checks a certificate with nothing but Python, NumPy and onnx."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from masksparse_deploy.checker.errors import CheckerError
from masksparse_deploy.checker.images import read_images
from masksparse_deploy.checker.run import check

__all__ = ["main"]

_EXIT_BUG = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, and return the exit code: 0 verified, 1 wrong or not verifiable, 2 usage, 4 a damaged file."""
    parser = argparse.ArgumentParser(prog="python -m masksparse_deploy.checker", description="Check a certificate.")
    parser.add_argument("certificate", type=Path, help="the JSON file of 'masksparse certify'")
    parser.add_argument("--dense", type=Path, required=True, help="the dense ONNX file")
    parser.add_argument("--sparse", type=Path, required=True, help="the sparse ONNX file")
    parser.add_argument("--data", type=Path, help="the images, an .npz file; without them what was measured is not checked")
    parser.add_argument("--limit", type=int, help="use the first so many images only, as the certificate did")
    parser.add_argument("--mean", type=float, action="append", default=[], help="per channel, for 8-bit images; repeatable")
    parser.add_argument("--std", type=float, action="append", default=[], help="per channel, for 8-bit images; repeatable")
    parser.add_argument("--json", action="store_true", help="print all findings as JSON")
    given = parser.parse_args(arguments)
    try:
        images = None if given.data is None else read_images(given.data, mean=given.mean, std=given.std, limit=given.limit)
        report = check(given.certificate, given.dense, given.sparse, images)
    except CheckerError as error:
        print(f"masksparse: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:  # Python's own exit code 1 would say that the certificate is wrong
        traceback.print_exc()
        print("masksparse: this is a bug in masksparse; please report it with the lines above", file=sys.stderr)
        return _EXIT_BUG
    print(report.to_json() if given.json else "\n".join(report.lines()))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
