"""How a clip moves (dynamic degree, consistency along the flow, flicker, stillness), and poses and faces in it."""

import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from test_metrics import textured, with_noise

from xdyna.errors import UserError
from xdyna.metrics import face_exp as faces_
from xdyna.metrics import flicker as flickers
from xdyna.metrics import flow as flows
from xdyna.metrics import flow_consistency as flow_consistency_
from xdyna.metrics import pose, stillness
from xdyna.metrics.face_exp import MOVING, face_exp, frontal
from xdyna.metrics.flicker import flicker
from xdyna.metrics.flow import dynamic_degree, flow, optical_flow, warped
from xdyna.metrics.flow_consistency import flow_consistency, leads_inside, warping_error
from xdyna.metrics.pose import MediaPipeReader, pose_distances, pose_error, pose_pck
from xdyna.metrics.specs import ClipMetric, Region, Sample
from xdyna.metrics.stillness import still_change, still_flow, still_region
from xdyna.preprocess.tracks import Tracks

SIZE_WH = (64, 48)
MEDIA = Path(os.environ.get("XDYNA_MEDIA") or Path(__file__).parents[2] / "shared" / "media")


#: What the files of this page's metrics register.
METRICS = {
    spec.name: spec for file in (flows, flow_consistency_, flickers, stillness, pose, faces_) for spec in file.SPECS
}


def clip_metric(name: str) -> ClipMetric:
    return METRICS[name]


# --- flow -------------------------------------------------------------------------------------------------------------


def test_dynamic_degree_is_the_speed_of_what_is_fast() -> None:
    """One part in ten slides: it sets the degree, and hardly the mean."""
    clip = np.repeat(textured(1), 8, 0)
    clip[:, :, :16] = textured(8, speed=2.0)[:, :, :16]
    assert dynamic_degree(clip) == pytest.approx(2.0, abs=0.3)
    assert flow(clip) < 0.7
    assert dynamic_degree(clip[:1].repeat(8, 0)) == 0
    still = np.zeros((48, 64), bool)
    still[:, 32:] = True
    assert dynamic_degree(clip, still) < 0.05
    assert np.isnan(dynamic_degree(clip, np.zeros((48, 64), bool)))
    degrees = [dynamic_degree(textured(8, speed=speed)) for speed in (0.5, 1.0, 2.0)]
    assert degrees == sorted(degrees)


def test_warped_fetches_from_where_the_flow_leads() -> None:
    picture = np.arange(20, dtype=np.float32).reshape(4, 5)
    right = np.zeros((4, 5, 2), np.float32)
    right[..., 0] = 1
    assert np.array_equal(warped(picture, right)[:, :4], picture[:, 1:])
    assert np.array_equal(warped(picture, right)[:, 4], picture[:, 4])  # the edge fills what is outside
    half = warped(picture, right / 2)
    assert half[0, 0] == pytest.approx(0.5)
    assert not leads_inside(right[None])[0, :, 4].any()
    assert leads_inside(right[None])[0, :, :4].all()


def test_what_slides_is_consistent_and_noise_is_not() -> None:
    sliding = textured(8, speed=1.5)
    assert flow_consistency(sliding) > 0.85
    assert flow_consistency(np.random.default_rng(0).integers(0, 255, sliding.shape, np.uint8)) < 0.3
    assert np.isnan(flow_consistency(sliding[:1].repeat(8, 0)))
    assert warping_error(sliding) < 1.5 < warping_error(with_noise(sliding, 10))
    assert warping_error(sliding[:1].repeat(8, 0)) == 0
    plain = np.abs(np.diff(sliding.astype(float), axis=0)).mean()
    assert warping_error(sliding) < 0.3 * plain  # the flow takes most of the change away


def test_flow_and_consistency_do_not_heed_brightness() -> None:
    dark = textured(8, speed=1.0) // 2
    light = dark + 90
    assert flow(light) == pytest.approx(flow(dark), rel=0.02)
    assert flow_consistency(light) == pytest.approx(flow_consistency(dark), abs=0.02)
    assert flicker(light) == pytest.approx(flicker(dark), abs=0.02)


def test_a_clip_shown_backwards_is_as_fast_and_flickers_as_much() -> None:
    clip = with_noise(textured(8, speed=1.0), 4)
    assert flow(clip[::-1]) == pytest.approx(flow(clip), rel=0.05)
    assert flicker(clip[::-1]) == pytest.approx(flicker(clip), rel=1e-5)


# --- flicker ----------------------------------------------------------------------------------------------------------


def test_flicker_of_known_noise_and_blinking() -> None:
    still = np.full((12, 32, 32, 3), 128, np.uint8)
    grey = np.random.default_rng(0).normal(0, 2.0, still.shape[:3])[..., None]
    noisy = np.clip(np.round(still + grey), 0, 255).astype(np.uint8)
    luma = noisy[..., 0].astype(float)
    outside = np.maximum(luma[1:-1] - np.maximum(luma[:-2], luma[2:]), np.minimum(luma[:-2], luma[2:]) - luma[1:-1])
    assert 0.6 < flicker(noisy) / np.maximum(outside, 0).mean() < 1  # the flow finds likeness in noise too
    blink = still.copy()
    blink[::2] += 10  # every frame is 10 above or below both neighbours
    assert flicker(blink) == pytest.approx(10, abs=0.1)
    assert flicker(still) == 0


def test_motion_and_fading_are_no_flicker() -> None:
    sliding = textured(10, speed=1.5)
    assert flicker(sliding) < 0.6
    assert flicker(with_noise(sliding, 10)) > 3
    fading = np.stack([np.full((32, 32, 3), 60 + 8 * frame, np.uint8) for frame in range(10)])
    assert flicker(fading) == 0


# --- stillness --------------------------------------------------------------------------------------------------------


def half_still(frames: int = 8) -> np.ndarray:
    """The left half slides, the right half stands still."""
    clip = textured(frames, speed=1.5)
    clip[:, :, 32:] = clip[:1, :, 32:]
    return clip


def test_still_region_is_what_rests_away_from_what_moves() -> None:
    truth = half_still()
    still = still_region(truth)
    assert not still[:, :, :34].any()
    assert still[:, :, 34:].all()
    assert np.array_equal(still_region(with_noise(truth, 0.8)), still)  # grain is not motion
    person = np.zeros(truth.shape[:3], np.uint8)
    person[:, 20:30, 40:50] = 255
    behind = still_region(truth, person)
    assert not behind[:, 18:32, 38:52].any()
    assert behind[:, 40:, 40:].all()
    assert not still_region(textured(8, speed=2.0)).any()


def test_people_who_walk_do_not_make_the_wall_move() -> None:
    truth = np.repeat(textured(1), 12, 0)
    person = np.zeros(truth.shape[:3], np.uint8)
    for frame in range(12):
        person[frame, 10:40, 4 * frame : 4 * frame + 10] = 255
        truth[frame, 10:40, 4 * frame : 4 * frame + 10] = 200
    assert not still_region(truth)[:, 20:30, 12:40].any()
    seen = still_region(truth, person)
    assert seen[0, 20:30, 14:50].all()
    assert not seen[0, 20:30, :10].any()


def test_stillness_counts_only_where_the_truth_stands_still() -> None:
    truth = half_still()
    assert still_flow(truth, truth) < 0.05
    assert still_change(truth, truth) == 0
    faster = truth.copy()
    faster[:, :, :32] = textured(8, speed=3.0, seed=2)[:, :, :32]
    assert still_change(faster, truth) == 0
    sliding = textured(8, speed=1.0)
    assert still_flow(sliding, truth) == pytest.approx(1.0, abs=0.25)
    noise = [still_change(with_noise(truth, strength), truth) for strength in (4.0, 8.0)]
    assert noise == pytest.approx([4.0 * 2 / np.sqrt(np.pi), 8.0 * 2 / np.sqrt(np.pi)], rel=0.03)
    assert np.isnan(still_flow(sliding, sliding))
    assert np.isnan(still_change(sliding, sliding))


def test_registered_metrics_share_the_flow_and_equal_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = half_still()
    masks = np.zeros(truth.shape[:3], np.uint8)
    masks[:, :, :20] = 255
    sample = Sample("one", with_noise(truth, 3), truth, masks)
    region: Region = "bg"
    where = masks == 0
    wanted = {
        "flow": flow(sample.made, where),
        "dynamic-degree": dynamic_degree(sample.made, where),
        "flow-consistency": flow_consistency(sample.made, where),
        "warping-error": warping_error(sample.made, where),
        "flicker": flicker(sample.made, where),
        "still-flow": still_flow(sample.made, truth, masks),
        "still-change": still_change(sample.made, truth, masks),
    }
    calls = []
    monkeypatch.setattr("xdyna.metrics.flow.optical_flow", lambda frames: calls.append(1) or optical_flow(frames))
    for name, value in wanted.items():
        metric = clip_metric(name)
        assert metric.value(sample, region if region in metric.regions else "all") == pytest.approx(value), name
    assert len(calls) == 2  # forth and back, once each
    assert clip_metric("flow").value(sample.of_truth(), "all") == pytest.approx(flow(truth))  # not the kept one


# --- pose -------------------------------------------------------------------------------------------------------------


def tracks_at(points: np.ndarray, size_wh: tuple[int, int] = SIZE_WH) -> Tracks:
    tracks = Tracks.empty(len(points), size_wh, 12.0)
    tracks.joints_xy[:], tracks.joints_conf[:] = points, 1
    return tracks


def test_pose_error_and_pck_of_known_errors() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 43, (4, 18, 2))
    points[:, 0, 1], points[:, 13, 1] = 4, 44  # 40 px high: a tenth is 4 px
    wanted, found = tracks_at(points), tracks_at(points + np.asarray([3.0, 0.0]))
    found.joints_xy[:, :9] += [3.0, 0.0]
    assert pose_error(found, wanted) == pytest.approx(4.5, abs=1e-4)
    assert pose_pck(found, wanted) == pytest.approx(0.5)
    double = replace(wanted, joints_xy=wanted.joints_xy * 2, size_wh=(128, 96))
    assert pose_error(found, double) == pytest.approx(4.5, abs=1e-4)
    found.joints_conf[:, 9:12] = 0.1  # not found: no distance, but wrong
    assert pose_error(found, wanted) == pytest.approx((9 * 6 + 6 * 3) / 15, abs=1e-4)
    assert pose_pck(found, wanted) == pytest.approx(6 / 18)
    wanted.joints_conf[:, :9] = 0.2  # not wanted: nothing is asked
    assert pose_error(found, wanted) == pytest.approx(3.0, abs=1e-4)
    nobody = Tracks.empty(4, SIZE_WH, 12.0)
    assert np.isnan(pose_error(nobody, wanted))
    assert pose_pck(nobody, wanted) == 0
    assert np.isnan(pose_pck(found, nobody))
    with pytest.raises(ValueError, match="found has 4 frames, wanted 3"):
        pose_distances(found, wanted[:3])


class Told:
    """Reads what it was told, by the brightness of the first pixel."""

    def __init__(self, *known: Tracks) -> None:
        self.known = known

    def read(self, frames: np.ndarray) -> Tracks:
        return self.known[int(frames[0, 0, 0, 0])]


def test_pose_is_compared_with_the_driver_or_else_the_truth() -> None:
    points = np.random.default_rng(0).uniform(5, 43, (4, 18, 2))
    reader = Told(tracks_at(points), tracks_at(points + np.asarray([1.0, 0.0])))
    made, truth = np.zeros((4, 48, 64, 3), np.uint8), np.ones((4, 48, 64, 3), np.uint8)
    metric = clip_metric("pose-error")
    assert metric.value(Sample("a", made, truth), backbone=reader) == pytest.approx(1, abs=1e-4)
    driven = Sample("b", made, truth, tracks=tracks_at(points + np.asarray([0.0, 2.0])))
    assert metric.value(driven, backbone=reader) == pytest.approx(2, abs=1e-4)
    assert np.isnan(metric.value(Sample("c", made), backbone=reader))
    assert clip_metric("pck").value(driven, backbone=reader) == 1


# --- faces ------------------------------------------------------------------------------------------------------------


def faces(frames: int = 6, seed: int = 0) -> np.ndarray:
    """68 points of a face whose moving points move at random."""
    rng = np.random.default_rng(seed)
    points = np.repeat(rng.uniform(-1, 1, (1, 68, 2)), frames, 0)
    points[:, list(MOVING)] += rng.normal(0, 0.1, (frames, len(MOVING), 2))
    return points


def placed_face(points: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The same with the fixed points where heads have them."""
    from xdyna.metrics.expression import FIXED

    out = points.copy()
    out[:, list(FIXED)] = fixed
    return out


def test_face_exp_sees_expressions_and_not_heads() -> None:
    from xdyna.metrics.expression import TEMPLATE

    face = placed_face(faces(), TEMPLATE)
    assert np.allclose(frontal(face[0]), face[0])
    turn = np.asarray([[0.8, -0.5], [0.4, 0.9]]) * 30
    elsewhere = face @ turn.T + [200.0, 150.0]
    assert face_exp(elsewhere, face) == pytest.approx(0, abs=1e-6)  # turned, larger, somewhere else
    other = face.copy()
    other[:, list(MOVING)] += np.random.default_rng(5).normal(0, 0.2, (len(MOVING), 2))  # another person's features
    assert face_exp(other, face) == pytest.approx(0, abs=1e-6)
    assert face_exp(face[::-1], face) > 5
    stiff = np.repeat(face.mean(0, keepdims=True), 6, 0)
    wanted = 100 * np.linalg.norm((face - face.mean(0))[:, list(MOVING)], axis=-1).mean()
    assert face_exp(stiff, face) == pytest.approx(wanted)
    mixes = [face_exp(face + share * (stiff - face), face) for share in (0.0, 0.3, 0.6, 1.0)]
    assert mixes == sorted(mixes)


def test_face_exp_needs_faces_in_both() -> None:
    face = faces()
    hidden = face.copy()
    hidden[1:4] = np.nan
    assert np.isfinite(face_exp(hidden, face))
    hidden[4] = np.nan
    assert np.isnan(face_exp(hidden, face))
    with pytest.raises(ValueError, match=r"wanted \[F, 68, 2\] twice"):
        face_exp(face, face[:3])


def test_face_exp_reads_both_clips_with_one_finder() -> None:
    from xdyna.metrics.expression import TEMPLATE

    face = placed_face(faces(), TEMPLATE) * 10 + 30
    tracks = [Tracks.empty(6, SIZE_WH, 12.0) for _ in range(3)]
    for index, points in enumerate((face, face[::-1])):
        tracks[index].face_xy[:], tracks[index].face_conf[:] = points, 1
    reader = Told(*tracks)
    made, truth, nobody = (np.full((6, 48, 64, 3), value, np.uint8) for value in (0, 1, 2))
    metric = clip_metric("face-exp")
    apart = face_exp(face.astype(np.float32), face[::-1].astype(np.float32))
    assert metric.value(Sample("a", made, truth), backbone=reader) == pytest.approx(apart, rel=1e-5)
    known = Sample("b", made, face_xy=face[::-1])
    assert metric.value(known, backbone=reader) == pytest.approx(apart, rel=1e-4)
    assert np.isnan(metric.value(Sample("c", made, nobody), backbone=reader))
    assert np.isnan(metric.value(Sample("d", made), backbone=reader))


@pytest.fixture(scope="module")
def reader() -> MediaPipeReader:
    try:
        return MediaPipeReader(keep=2)
    except UserError:
        pytest.skip("mediapipe is not installed")


def test_the_real_reader_says_nobody_of_an_empty_room_and_keeps_what_it_read(
    reader: MediaPipeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = np.full((3, 96, 64, 3), 120, np.uint8)
    assert not reader.read(room).joints_conf.any()
    monkeypatch.setattr(reader, "_find", lambda frames: pytest.fail("read twice"))
    assert not reader.read(room.copy()).face_conf.any()
    metric = clip_metric("face-exp")
    assert np.isnan(metric.value(Sample("a", room, room), backbone=reader))


def test_the_real_reader_tells_people_and_expressions_apart(reader: MediaPipeReader) -> None:
    path = MEDIA / "driving_1.mp4"
    if not path.is_file():
        pytest.skip(f"no {path} (set XDYNA_MEDIA)")
    with av.open(str(path)) as container:
        every = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(36), strict=False)
        ]
    clip = np.stack(every[::6])
    truth, later = clip[:5], clip[1:]

    def values(made: np.ndarray) -> list[float]:
        return [
            clip_metric(name).value(Sample("a", made, truth), backbone=reader) for name in ("pose-error", "face-exp")
        ]

    assert values(truth) == [0, 0]
    assert values(np.roll(truth, 8, axis=2))[0] == pytest.approx(8, abs=3)
    assert min(values(later)) > 1
    assert clip_metric("pck").value(Sample("a", np.roll(truth, 200, axis=2), truth), backbone=reader) < 0.2
