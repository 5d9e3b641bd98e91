"""A target under atheris: `python -m tests.fuzz.guided TARGET [libFuzzer's options] FOLDER`. Ends by itself."""

from __future__ import annotations

import sys


def main() -> None:
    """Instrument the protocol, then fuzz the target for ever or until libFuzzer's options say so."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["bridge.protocol"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
