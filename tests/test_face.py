"""Face maps at frame edges and in frames without a face; face points found in head boxes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xdyna.photo import read_photo
from xdyna.preprocess.boxes import head_box
from xdyna.preprocess.face import FacePlace, clip_box, draw_face_maps, face_maps, face_place
from xdyna.preprocess.face_mesh import MESH_VERTICES, FaceMesh, cut_square, find_faces, plausible
from xdyna.preprocess.tracks import JOINT_NAMES, NUM_FACE_POINTS, Tracks

MEDIA = Path(os.environ.get("XDYNA_MEDIA") or Path(__file__).parents[2] / "shared" / "media")


def oval(centre_xy: tuple[float, float], radius_px: float) -> np.ndarray:
    """68 points: a circle for the jaw, eyes, nose and mouth where a face has them."""
    points = np.zeros((NUM_FACE_POINTS, 2), np.float32)
    angles = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([np.cos(angles), np.sin(angles)], -1)
    points[17:27] = np.stack([np.linspace(-0.8, 0.8, 10), np.full(10, -0.6)], -1)
    points[27:36] = [0, 0]
    points[36:42], points[42:48], points[48:] = (-0.4, -0.3), (0.4, -0.3), (0, 0.5)
    return (points * radius_px + np.asarray(centre_xy)).astype(np.float32)


def frame_of_noise(height: int = 96, width: int = 64) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 256, (height, width, 3)).astype(np.uint8)


def test_the_maps_show_the_boxes_and_nothing_else() -> None:
    frame = frame_of_noise()
    place = face_place(oval((32, 40), 8), (64, 96))
    local_map, global_map = draw_face_maps(frame, place)
    left, top, right, bottom = place.box
    assert np.array_equal(global_map[top:bottom, left:right], frame[top:bottom, left:right])
    assert np.count_nonzero(global_map.any(-1)) == (right - left) * (bottom - top)
    shown = local_map.any(-1)
    assert np.array_equal(local_map[shown], frame[shown])
    for x, y in place.centres:
        assert shown[y, x]
    # The first point of each part is left out, as in training: moving it moves nothing.
    moved = oval((32, 40), 8)
    moved[[36, 42, 48]] += 3
    assert face_place(moved, (64, 96)).centres == place.centres


def test_boxes_over_the_edge_are_clipped_and_officially_empty() -> None:
    frame = frame_of_noise()
    place = FacePlace((0, 0, 40, 40), ((2, 2), (20, 2), (10, 20)))
    clipped, _ = draw_face_maps(frame, place)
    official, _ = draw_face_maps(frame, place, official=True)
    assert clipped[:7, :7].any(-1).all()
    assert not official[:7, :7].any()
    assert clipped[:7, 15:25].any(-1).all()
    assert np.array_equal(clipped[15:25, 5:15], official[15:25, 5:15])


def test_a_face_wholly_outside_gives_black_maps() -> None:
    place = face_place(oval((-200, -300), 8), (64, 96))
    assert clip_box((70, 100, 90, 120), (64, 96)) == (64, 96, 64, 96)
    for one in draw_face_maps(frame_of_noise(), place):
        assert not one.any()


def test_frames_without_a_face_are_black_or_hold_the_last_place() -> None:
    tracks = Tracks.empty(4, (64, 96), 8.0)
    tracks.face_xy[1], tracks.face_conf[1] = oval((32, 40), 8), 1.0
    frames = [frame_of_noise() for _ in range(4)]
    black = [global_map.any() for _, global_map in face_maps(frames, tracks)]
    held = [global_map.any() for _, global_map in face_maps(frames, tracks, hold=True)]
    assert black == [False, True, False, False]
    assert held == [False, True, True, True]


def test_frames_must_fit_the_tracks() -> None:
    tracks = Tracks.empty(2, (64, 96), 8.0)
    with pytest.raises(ValueError, match="wanted"):
        list(face_maps([np.zeros((10, 10, 3), np.uint8)] * 2, tracks))
    with pytest.raises(ValueError, match="zip"):
        list(face_maps([frame_of_noise()], tracks))
    with pytest.raises(ValueError, match="68"):
        face_place(np.zeros((5, 2)), (64, 96))


def with_head(num_frames: int, size_wh: tuple[int, int], nose: tuple[float, float], side: float) -> Tracks:
    """Tracks whose head box is `side` px wide round a nose between two eyes."""
    tracks = Tracks.empty(num_frames, size_wh, 8.0)
    xy, conf = tracks.joints_xy.copy(), tracks.joints_conf.copy()
    for name, offset in (("nose", 0.0), ("right_eye", -0.12), ("left_eye", 0.12)):
        xy[:, JOINT_NAMES.index(name)] = (nose[0] + offset * side, nose[1])
        conf[:, JOINT_NAMES.index(name)] = 1
    return replace(tracks, joints_xy=xy, joints_conf=conf)


def test_faces_are_looked_for_in_head_boxes_only() -> None:
    class Finder:
        def __init__(self) -> None:
            self.boxes: list[np.ndarray] = []

        def find(self, frame: np.ndarray, box: np.ndarray) -> np.ndarray | None:
            self.boxes.append(box)
            return oval((50, 40), 10) if len(self.boxes) == 1 else None

    finder, tracks = Finder(), with_head(3, (100, 80), (50, 40), 40)
    tracks.joints_conf[2] = 0
    found = find_faces([np.zeros((80, 100, 3), np.uint8)] * 3, tracks, finder)
    assert len(finder.boxes) == 2
    assert found.face_conf.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(found.face_xy[0], oval((50, 40), 10))
    np.testing.assert_array_equal(finder.boxes[0], head_box(tracks)[0])


def test_a_cut_square_keeps_places_and_pads_with_black() -> None:
    frame = np.zeros((80, 100, 3), np.uint8)
    frame[30:50, 40:60] = 200
    square = cut_square(frame, np.array([40, 30, 60, 50], np.float32))
    assert square.shape == (256, 256, 3)
    assert (square[8:-8, 8:-8] == 200).all()
    outside = cut_square(np.full((80, 100, 3), 200, np.uint8), np.array([-50, -50, 50, 50], np.float32))
    assert not outside[:120, :120].any()
    assert (outside[136:, 136:] == 200).all()


def test_what_cannot_be_the_face_of_a_head_is_refused() -> None:
    assert plausible(oval((0.5, 0.5), 0.25))
    assert not plausible(oval((0.5, 0.5), 0.05))
    assert not plausible(oval((0.05, 0.5), 0.25))


def test_the_index_map_is_mirror_symmetric() -> None:
    """Left and right points map to different vertices, each used once, inside the mesh."""
    assert len(set(MESH_VERTICES)) == NUM_FACE_POINTS
    assert max(MESH_VERTICES) < 468


def test_the_mesh_finds_the_face_of_a_photo() -> None:
    """The reference photo of the media folder: points in the order that the maps rely on."""
    pytest.importorskip("mediapipe")
    path = MEDIA / "ref_fireworks.jpg"
    if not path.is_file():
        pytest.skip(f"no {path} (set XDYNA_MEDIA)")
    photo = read_photo(path)
    from xdyna.preprocess.mediapipe_pose import MediaPipeFinder

    with FaceMesh() as mesh:
        tracks = find_faces([photo], MediaPipeFinder(hands=False).find(photo, 1)[0], mesh)
    assert tracks.face_conf[0] == 1
    face = tracks.face_xy[0]
    jaw, brows, nose, mouth = face[:17], face[17:27], face[27:36], face[48:]
    left_eye, right_eye = face[42:48].mean(0), face[36:42].mean(0)
    assert right_eye[0] < nose[:, 0].mean() < left_eye[0]
    assert brows[:, 1].mean() < right_eye[1] < nose[-5:, 1].mean() < mouth[:, 1].mean() < jaw[8, 1]
    assert (np.diff(face[[0, 4, 8, 12, 16], 0]) > 0).all()
    eyes = tracks.joints_xy[0][[JOINT_NAMES.index("right_eye"), JOINT_NAMES.index("left_eye")]]
    apart = float(np.linalg.norm(left_eye - right_eye))
    assert np.linalg.norm(np.stack([right_eye, left_eye]) - eyes, axis=-1).max() < 0.35 * apart
