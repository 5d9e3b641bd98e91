"""Read an answer while it is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator import Final, Status, Token, connect

PROGRAM = f"{Path(__file__).parent}/program.py:Story"
SUBJECT = "A fox finds a lantern in the snow and carries it to the village."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    with connect() as client:
        client.deploy("streaming", PROGRAM)
        pieces, field = 0, ""
        with client.program("streaming", lm=lm).stream(subject=SUBJECT) as stream:
            for item in stream:
                match item:
                    case Token():
                        print("" if item.field == field else f"\n{item.field}: ", item.text, sep="", end="", flush=True)
                        field, pieces = item.field, pieces + 1
                    case Status():
                        print(f"\n({item.message})", end="")
                    case Final(value):
                        print(f"\nin {pieces} pieces; the whole at the end: {sorted(value)}")
        client.undeploy("streaming")


if __name__ == "__main__":
    main()
