"""A program that is given a picture."""

from __future__ import annotations

import base64
import struct

import dspy


class Look(dspy.Module):
    """`Look()(picture=dspy.Image(…), caption="…")` has `colour`, and `size`: width and height in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.look = dspy.Predict("picture: dspy.Image, caption -> colour: Literal['red', 'green', 'blue']")

    def forward(self, picture: dspy.Image, caption: str) -> dspy.Prediction:
        # It is a dspy.Image here too, with the bytes that the caller sent.
        png = base64.b64decode(picture.url.partition(",")[2])
        size = list(struct.unpack(">2I", png[16:24]))
        return dspy.Prediction(colour=self.look(picture=picture, caption=caption).colour, size=size)
