"""The benchmark: dspool beside its references, in the same run, by the same loops.

`run` measures and returns a `Report`, which prints itself as a table and as JSON. Absolute figures vary from
machine to machine and from run to run: the ratios are what a run is read for. `native` compares operations that need
no worker with the same through one; `lives` measures starts, memory, and how long a killed worker is missed.
"""

from orchestrator.bench.report import Report
from orchestrator.bench.run import run

__all__ = ["Report", "run"]
