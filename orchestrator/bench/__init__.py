"""The benchmark: dspool beside its references, in the same run, by the same loops.

`run` measures and returns a `Report`, which prints itself as a table and as JSON. Absolute figures vary from
machine to machine and from run to run: the ratios are what a run is read for.
"""

from orchestrator.bench.report import Report
from orchestrator.bench.run import run

__all__ = ["Report", "run"]
