"""Pan and scan: crops of long images, which Gemma-3 receives after the whole image.

Source: transformers, `models/gemma3/image_processing_gemma3.py`; the names of the settings are those of its
preprocessor_config.json.
"""

import dataclasses
import itertools
import math

#: Left, top, right and bottom in pixels.
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanAndScan:
    """Settings of the crops.

    Attributes:
      min_crop_size: smallest side of a crop, in pixels.
      max_num_crops: largest number of crops of an image.
      min_ratio_to_activate: ratio of the sides from which on an image has crops.
    """

    min_crop_size: int = 256
    max_num_crops: int = 4
    min_ratio_to_activate: float = 1.2

    def boxes(self, width: int, height: int) -> list[Box]:
        """Return the crops of an image in order: equal parts along its longer side; [] if it has none."""
        long, short = max(width, height), min(width, height)
        if long / short < self.min_ratio_to_activate:
            return []
        count = min(long // self.min_crop_size, math.floor(long / short + 0.5))
        count = min(self.max_num_crops, max(2, count))
        across, down = (count, 1) if width >= height else (1, count)
        crop_width, crop_height = math.ceil(width / across), math.ceil(height / down)
        if min(crop_width, crop_height) < self.min_crop_size:
            return []
        tops, lefts = range(0, crop_height * down, crop_height), range(0, crop_width * across, crop_width)
        return [
            (left, top, min(left + crop_width, width), min(top + crop_height, height))
            for top, left in itertools.product(tops, lefts)
        ]
