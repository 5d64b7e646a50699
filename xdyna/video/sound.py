"""Cut the driving video's sound to the chosen interval and encode it beside the new frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from xdyna.video.source import open_video, probe, sound_stream

_AAC_RATES = {96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000}
_CHUNK = 1024  # samples of one AAC frame
_SEEK_BACK_S = 1  # a decoder needs a little of what comes before
_GAP_S = 0.05  # time stamps off by more than this are a real gap, not rounding

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class AudioCut:
    """A piece of a video's sound.

    Attributes:
        path: the video (or sound) file.
        start_s: where the piece begins, seconds from the video's first frame.
        duration_s: its length, seconds; None for as long as the frames that are written beside it.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None


class SoundTrack:
    """The sound track of one output file: `write_until` is called as the frames are written.

    Make it before the first frame is muxed; `found` is False (and no track is made) where the file holds no sound
    that can be decoded within the piece.
    """

    def __init__(self, cut: AudioCut, output: OutputContainer) -> None:
        self._cut = cut
        self._output = output
        self._chunks = _samples_from(cut)
        self._waiting: list[Samples] = []
        self._num_waiting = 0
        self._num_written = 0
        first = next(self._chunks, None)
        self.found = first is not None
        if first is None:
            return
        samples, self.rate = first
        layout = "mono" if len(samples) == 1 else "stereo"
        self._stream = output.add_stream("aac", rate=self.rate, layout=layout, bit_rate=160_000)
        self._layout = layout
        self._keep(samples)

    def write_until(self, time_s: Fraction) -> None:
        """Encode what sounds before `time_s`, seconds of the output, in whole AAC frames."""
        self._fetch(self._num_samples(time_s))
        while self.found and self._num_written + _CHUNK <= self._num_samples(time_s) and self._num_waiting >= _CHUNK:
            self._encode(self._take(_CHUNK))

    def close(self, end_s: Fraction) -> None:
        """Encode the rest up to `end_s`, the end of the last frame."""
        if not self.found:
            return
        self.write_until(end_s)
        rest = min(self._num_waiting, self._num_samples(end_s) - self._num_written)
        if rest > 0:
            self._encode(self._take(rest))
        self._output.mux(self._stream.encode(None))
        self.stop()

    def stop(self) -> None:
        """Close the file the sound comes from."""
        self._chunks.close()

    def _num_samples(self, time_s: Fraction) -> int:
        if not self.found:
            return 0
        if self._cut.duration_s is not None:
            time_s = min(time_s, Fraction(self._cut.duration_s))
        return round(time_s * self.rate)

    def _fetch(self, num_samples: int) -> None:
        while self._num_written + self._num_waiting < num_samples:
            more = next(self._chunks, None)
            if more is None:
                return
            self._keep(more[0])

    def _keep(self, samples: Samples) -> None:
        self._waiting.append(samples)
        self._num_waiting += samples.shape[1]

    def _take(self, num_samples: int) -> Samples:
        samples = np.concatenate(self._waiting, axis=1)
        self._waiting = [samples[:, num_samples:]]
        self._num_waiting -= num_samples
        return samples[:, :num_samples]

    def _encode(self, samples: Samples) -> None:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate = self.rate
        frame.time_base = Fraction(1, self.rate)
        frame.pts = self._num_written
        self._num_written += samples.shape[1]
        self._output.mux(self._stream.encode(frame))


def _samples_from(cut: AudioCut) -> Generator[tuple[Samples, int]]:
    """(samples float32 [channels, n], their rate) without holes, beginning exactly at the start of the piece."""
    origin = probe(cut.path).start + Fraction(cut.start_s).limit_denominator(1_000_000)
    with open_video(cut.path) as (container, _):
        stream = sound_stream(container)
        if stream is None:
            return
        num_given = 0
        for frame in _resampled(container, stream, origin):
            samples = frame.to_ndarray().astype(np.float32, copy=False)
            if frame.pts is None or frame.time_base is None:
                continue
            rate = frame.sample_rate
            gap = round((frame.pts * frame.time_base - origin) * rate) - num_given
            if num_given and abs(gap) <= _GAP_S * rate:
                gap = 0
            for silence in _silence(len(samples), gap, rate):
                num_given += silence.shape[1]
                yield silence, rate
            samples = samples[:, max(0, -gap) :]
            if samples.shape[1]:
                num_given += samples.shape[1]
                yield samples, rate


def _silence(num_channels: int, num_samples: int, rate: int) -> Iterator[Samples]:
    """Silence in pieces of a second at most: a wrong time stamp can ask for hours of it."""
    for at in range(0, num_samples, rate):
        yield np.zeros((num_channels, min(rate, num_samples - at)), np.float32)


def _resampled(container: InputContainer, stream: AudioStream, origin: Fraction) -> Iterator[AudioFrame]:
    rate = stream.codec_context.sample_rate
    resampler = av.AudioResampler(
        format="fltp",
        layout="mono" if stream.codec_context.channels == 1 else "stereo",
        rate=rate if rate in _AAC_RATES else 48000,
    )
    if origin > _SEEK_BACK_S:
        container.seek(int((origin - _SEEK_BACK_S) * 1_000_000))
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue  # the hole is filled with silence
            for frame in frames:
                yield from resampler.resample(frame)
        yield from resampler.resample(None)
    except (av.error.FFmpegError, OSError):
        return  # a file cut short: its sound ends here
