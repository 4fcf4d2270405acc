"""What a mixture does, drawn beside the frames of an episode: the active sub-policy and the value of every one."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sb3_dmpo.plots.common import ONE_POLICY, colour_of

#: Frames are enlarged to this height at least.
_MIN_HEIGHT = 480
_PANEL_WIDTH, _MARGIN, _TEXT, _SMALL = 320, 16, 20, 16
#: Where bars begin and end, and what is left of them for the numbers.
_BARS = (_MARGIN + 36, 210)
_MAX_ROWS = 16
#: Steps in the strip at the bottom.
_HISTORY = 96
_STRIP_HEIGHT = 24


class Overlay:
    """
    Draws a panel beside every frame and remembers which sub-policies were active.

    :param title: first line of the panel
    :param is_one: whether the sub-policies are as good as the same: they get one colour, and the panel says so
    """

    def __init__(self, title: str, is_one: bool = False) -> None:
        self.title = title
        self.is_one = is_one
        self._history: deque[int] = deque(maxlen=_HISTORY)
        self._small = ImageFont.load_default(_SMALL)

    def start_episode(self) -> None:
        """Forget the steps of the episode before."""
        self._history.clear()

    def draw(
        self, frame: NDArray[np.uint8], lines: Sequence[str], q_values: NDArray[np.float32] | None = None, active: int = 0
    ) -> NDArray[np.uint8]:
        """
        The frame with a panel on its right, shape ``(height, width, 3)`` with even sizes, as video codecs want them.

        :param frame: what the environment renders, shape ``(height, width, 3)``
        :param lines: texts under the title
        :param q_values: value of every sub-policy, shape ``(n_components,)``; None: the policy is no mixture
        :param active: index of the sub-policy that acts
        """
        picture = Image.fromarray(np.asarray(frame, np.uint8))
        scale = max(1.0, _MIN_HEIGHT / picture.height)
        picture = picture.resize((2 * round(picture.width * scale / 2), 2 * round(picture.height * scale / 2)))
        canvas = Image.new("RGB", (picture.width + _PANEL_WIDTH, picture.height), "white")
        canvas.paste(picture, (0, 0))
        panel = ImageDraw.Draw(canvas)
        left, y = picture.width, _MARGIN
        self._line(panel, left, y, self.title, _TEXT)
        for line in lines:
            y += _TEXT + 6
            self._line(panel, left, y, line, _SMALL)
        if q_values is not None:
            self._history.append(active)
            self._draw_bars(
                panel, left, y + _TEXT + 18, canvas.height - 2 * _MARGIN - _STRIP_HEIGHT - _SMALL, q_values, active
            )
            self._draw_strip(panel, left, canvas.height - _MARGIN - _STRIP_HEIGHT)
        return np.asarray(canvas)

    @staticmethod
    def _line(panel: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int) -> None:
        """Write a line that fits into the panel: smaller if it is long, cut if it is very long."""
        room = _PANEL_WIDTH - 2 * _MARGIN
        while size > 12 and ImageFont.load_default(size).getlength(text) > room:
            size -= 1
        font = ImageFont.load_default(size)
        while font.getlength(text) > room:
            text = f"{text[:-4]}..."
        panel.text((left + _MARGIN, top), text, "black", font)

    def _draw_bars(
        self, panel: ImageDraw.ImageDraw, left: int, top: int, bottom: int, q_values: NDArray[np.float32], active: int
    ) -> None:
        """One row per sub-policy, in order; the bar says where its value lies between the worst and the best."""
        heading = ONE_POLICY if self.is_one else "sub-policy and its value (worst to best)"
        self._line(panel, left, top, heading, _SMALL)
        top += _SMALL + 10
        shown = np.sort(np.argsort(-q_values, kind="stable")[:_MAX_ROWS])
        row = min(30, (bottom - top) // len(shown))
        low, high = float(q_values.min()), float(q_values.max())
        font = self._small if row >= _SMALL + 4 else ImageFont.load_default(max(10, row - 4))
        for i, component in enumerate(shown):
            y, is_active = top + i * row, component == active and not self.is_one
            # Where they act as one, the differences are rounding and noise: bars of one length.
            share = (float(q_values[component]) - low) / (high - low) if high > low and not self.is_one else 1.0
            start, end = left + _BARS[0], left + _BARS[0] + 4 + round(share * (_BARS[1] - _BARS[0] - 4))
            if is_active:
                panel.rectangle((left + 6, y, left + _PANEL_WIDTH - 7, y + row - 2), "#EEEEEE", "black", 2)
            middle = y + (row - 2) / 2
            panel.text((left + _MARGIN, middle), str(component), "black", font, anchor="lm")
            panel.rectangle((start, y + 5, end, y + row - 7), self._colour(int(component)), "black")
            panel.text((left + _PANEL_WIDTH - 12, middle), f"{q_values[component]:.5g}", "black", font, anchor="rm")

    def _colour(self, component: int) -> str:
        return colour_of(0 if self.is_one else component)

    def _draw_strip(self, panel: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """The active sub-policies of the last steps, the newest on the right."""
        panel.text((left + _MARGIN, top - _SMALL - 6), f"active in the last {_HISTORY} steps", "black", self._small)
        start, width = left + _MARGIN, (_PANEL_WIDTH - 2 * _MARGIN) // _HISTORY
        start += (_HISTORY - len(self._history)) * width
        for i, component in enumerate(self._history):
            box = (start + i * width, top, start + (i + 1) * width - 1, top + _STRIP_HEIGHT)
            panel.rectangle(box, self._colour(component))
