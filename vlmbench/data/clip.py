"""Short clips for models that take video: made from a picture, encoded to a real file in memory, decoded when asked.

PyAV (the extra ``video``) brings FFmpeg's H.264 encoder and decoder; nothing else of a clip is made up.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 2
"""Frames a second, as models that sample video take them."""
_SHARE = 0.875  # of the picture's width and height that a frame shows


def encode_clip(picture: Image, frames: int) -> bytes:
    """An MP4 of a slow pan across a picture from corner to corner.

    Args:
        picture: RGB.
    """
    import av

    width, height = (int(side * _SHARE) // 2 * 2 for side in picture.size)  # H.264 halves the colours' resolution
    room = picture.width - width, picture.height - height
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1  # the same bytes on every machine
        for number in range(frames):
            share = number / max(frames - 1, 1)
            left, top = round(share * room[0]), round(share * room[1])
            pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_clip(encoded: bytes) -> NDArray[np.uint8]:
    """All frames of a file, (frames, height, width, 3)."""
    import av

    with av.open(io.BytesIO(encoded)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
