"""A program whose answer is read while it is written."""

from __future__ import annotations

import dspy


class Story(dspy.Module):
    """`Story()(subject="…")` has an `outline`, and the `story` by it."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("subject -> outline")
        self.write = dspy.Predict("subject, outline -> story")

    async def aforward(self, subject: str) -> dspy.Prediction:
        outline = (await self.plan.acall(subject=subject)).outline
        return dspy.Prediction(outline=outline, story=(await self.write.acall(subject=subject, outline=outline)).story)
