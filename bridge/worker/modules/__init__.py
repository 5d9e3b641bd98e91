"""DSPy's own modules as operations: `dspy.Predict {signature, inputs, options}` and its kin."""

from bridge.worker.modules.choosing import BestOf
from bridge.worker.modules.modules import KINDS, Modules
from bridge.worker.modules.plan import Plan, compile_signature, signature_error

__all__ = ["KINDS", "BestOf", "Modules", "Plan", "compile_signature", "signature_error"]
