"""Reading and writing video: streams of uint8 RGB frames [H, W, 3], never a whole clip in memory."""

from xdyna.video.codecs import known_codecs
from xdyna.video.compare import side_by_side, side_by_side_size_wh
from xdyna.video.read import VideoReader
from xdyna.video.sound import AudioCut
from xdyna.video.source import VideoInfo, probe
from xdyna.video.write import VideoWriter, check_output

__all__ = [
    "AudioCut",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "check_output",
    "known_codecs",
    "probe",
    "side_by_side",
    "side_by_side_size_wh",
]
