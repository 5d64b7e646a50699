"""Faces: brought into place, found, recognised; insightface's formats with networks made here."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_networks import drawn
from numpy.typing import NDArray
from test_metrics import textured
from torch import Tensor

from xdyna.errors import UserError
from xdyna.metrics.face_cos import face_cos
from xdyna.metrics.face_det import face_det
from xdyna.metrics.faces import PLACES, Recogniser, aligned, five_points, similarity
from xdyna.metrics.nets.iresnet import IResNet
from xdyna.preprocess.crop import Image

MEDIA = Path(os.environ.get("XDYNA_MEDIA") or Path(__file__).parents[2] / "shared" / "media")


def drawn_face(shade: int, angle: float = 0.0, scale: float = 1.0, middle: tuple[int, int] = (80, 70)) -> Image:
    """Five dots on a disc, as `Marks` finds them, at the places of an aligned face, turned and scaled."""
    import cv2

    frame = np.full((140, 160, 3), 90, np.uint8)
    cv2.circle(frame, middle, round(46 * scale), (shade, 160, 255 - shade), -1)
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for index, (x, y) in enumerate((PLACES - PLACES.mean(0)) * scale @ turn.T + middle):
        cv2.circle(frame, (round(x), round(y)), 3, (index + 1, 0, 0), -1)
    return frame


class Marks:
    """Finds the dots of `drawn_face` by their colours."""

    def find(self, frame: Image) -> NDArray[np.float32] | None:
        where = [np.argwhere((frame[..., 0] == index + 1) & (frame[..., 1] == 0)) for index in range(5)]
        if any(len(pixels) == 0 for pixels in where):
            return None
        return np.stack([pixels.mean(0)[::-1] for pixels in where]).astype(np.float32)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    network = IResNet((1, 1, 1, 1), 4, 16)
    network.load_state_dict(drawn(network))
    return Recogniser(Marks(), network.requires_grad_(False).eval())


# --- alignment --------------------------------------------------------------------------------------------------------


def test_similarity_is_found_exactly_and_fitted_otherwise() -> None:
    angle, scale = 0.7, 1.8
    turn = scale * np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    matrix = similarity(points, (points @ turn.T + [3, -4]).astype(np.float32))
    assert np.allclose(matrix, np.concatenate([turn, [[3], [-4]]], 1), atol=1e-5)
    places = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    matrix = similarity(points, places)
    assert np.allclose(matrix[0, 0], matrix[1, 1])  # a turn and a scale, no mirror, no shear
    assert np.allclose(matrix[0, 1], -matrix[1, 0])
    best = _miss(matrix, points, places)
    for change in np.random.default_rng(2).normal(size=(50, 4)) * 0.05:
        a, b = matrix[0, 0] + change[0], matrix[1, 0] + change[1]
        other = np.asarray([[a, -b, matrix[0, 2] + change[2]], [b, a, matrix[1, 2] + change[3]]])
        assert _miss(other, points, places) >= best


def _miss(matrix: NDArray[np.float64], points: NDArray[np.float32], places: NDArray[np.float32]) -> float:
    return float(((points @ matrix[:, :2].T + matrix[:, 2] - places) ** 2).sum())


def test_aligned_faces_lie_where_networks_expect_them() -> None:
    for angle, scale in ((0.0, 1.0), (0.4, 0.8), (-0.6, 1.2)):
        frame = drawn_face(200, angle, scale)
        points = Marks().find(frame)
        assert points is not None
        face = aligned(frame, points)
        assert face.shape == (112, 112, 3)
        for x, y in np.round(PLACES).astype(int):
            assert face[y, x, 1] < 40  # the dots are dark in green, the disc is not


def test_five_points_of_68() -> None:
    face_xy = np.zeros((68, 2))
    face_xy[36:42], face_xy[42:48] = (10, 20), (30, 20)
    face_xy[30], face_xy[48], face_xy[54] = (20, 30), (14, 40), (26, 40)
    assert five_points(face_xy).tolist() == [[10, 20], [30, 20], [20, 30], [14, 40], [26, 40]]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_face_cos_is_of_the_person_not_of_the_place(recogniser: Recogniser) -> None:
    reference = drawn_face(200)
    moved = np.stack([drawn_face(200, 0.3), drawn_face(200, -0.4, 1.2, (70, 66))])
    values = [face_cos(drawn_face(shade)[None], reference, recogniser) for shade in (200, 160, 100, 20)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)
    assert face_cos(moved, reference, recogniser) > values[2]


def test_frames_without_a_face_do_not_count_and_none_gives_nan(recogniser: Recogniser) -> None:
    empty = np.full((1, 140, 160, 3), 90, np.uint8)
    face = drawn_face(200)
    clip = np.concatenate([face[None], empty, face[None], empty])
    assert face_cos(clip, face, recogniser) == pytest.approx(1, abs=1e-6)
    assert np.isnan(face_cos(empty, face, recogniser))
    assert np.isnan(face_cos(clip, empty[0], recogniser))
    assert face_det(clip, Marks()) == 0.5
    assert face_det(empty, Marks()) == 0


def test_broken_weights_are_said() -> None:
    broken = Recogniser(Marks(), lambda faces: faces.flatten(1)[:, :4] * float("nan"))
    with pytest.raises(UserError, match="gives NaN or infinity"):
        face_cos(drawn_face(200)[None], drawn_face(200), broken)


# --- insightface ------------------------------------------------------------------------------------------------------


def write_detector(path: Path, faces: list[tuple[int, int, int, float, float]]) -> None:
    """A SCRFD that always finds the same: (stride, row, column, score, half a side) of faces."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    outputs = []
    for kind, width in (("score", 1), ("box", 4), ("point", 10)):
        for stride in (8, 16, 32):
            side = 640 // stride
            value = np.zeros((side, side, 2, width), np.float32)
            for its, row, column, score, half in faces:
                if its == stride:
                    places = (PLACES / 56 - 1) * half
                    # Distances of the box's sides and offsets of the points, in units of the stride.
                    given = {"score": score, "box": half / stride, "point": places.ravel() / stride}[kind]
                    value[row, column, 1] = given
            outputs.append((f"{kind}{stride}", value.reshape(-1, width)))
    nodes, tensors = [], []
    for name, value in outputs:
        tensors.append(onnx.numpy_helper.from_array(value, f"of_{name}"))
        nodes.append(onnx.helper.make_node("Identity", [f"of_{name}"], [name]))
    write_onnx(path, nodes, tensors, [1, 3, 640, 640], [(name, list(value.shape)) for name, value in outputs])


def write_onnx(path: Path, nodes, tensors, inside, outside) -> None:  # type: ignore[no-untyped-def]
    import onnx

    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("input", kind, inside)],
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in outside], tensors,
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def write_recogniser(path: Path) -> None:
    """Three numbers: the mean of each colour."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    nodes = [onnx.helper.make_node("ReduceMean", ["input"], ["out"], axes=[2, 3], keepdims=0)]
    write_onnx(path, nodes, [], [1, 3, 112, 112], [("out", [1, 3])])


def test_scrfd_gives_the_largest_face_in_pixels_of_the_frame(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from xdyna.metrics.nets.onnx_faces import Scrfd

    path = tmp_path / "det_10g.onnx"
    # A small sure face, a large one twice (the surer box is kept), and a large one that is not sure enough.
    write_detector(path, [(8, 10, 12, 0.95, 20), (16, 20, 25, 0.8, 60), (16, 21, 25, 0.7, 61), (32, 5, 5, 0.4, 150)])
    points = Scrfd(path).find(np.zeros((320, 160, 3), np.uint8))  # seen at twice its size
    assert points is not None
    wanted = (np.asarray([25 * 16, 20 * 16]) + (PLACES / 56 - 1) * 60) / 2
    assert np.allclose(points, wanted, atol=1e-3)
    write_detector(path, [(8, 10, 12, 0.3, 20)])
    assert Scrfd(path).find(np.zeros((320, 160, 3), np.uint8)) is None


def test_arcface_sees_red_first_and_gives_directions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from xdyna.metrics.nets.onnx_faces import ArcFace

    write_recogniser(tmp_path / "w600k_r50.onnx")
    faces = torch.zeros((2, 3, 112, 112))
    faces[0, 0], faces[1] = 1, 0.75
    wanted = torch.nn.functional.normalize(torch.tensor([[1.0, -1, -1], [0.5, 0.5, 0.5]]))
    found: Tensor = ArcFace(tmp_path / "w600k_r50.onnx")(faces)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_insightface_through_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from metric_networks import without_hashes

    from xdyna.metrics.backbones import load_backbone

    without_hashes(tmp_path, monkeypatch)
    write_detector(tmp_path / "det_10g.onnx", [(16, 20, 20, 0.9, 250)])
    write_recogniser(tmp_path / "w600k_r50.onnx")
    recogniser = load_backbone("insightface", tmp_path)
    clip = textured(2, 64, 64)
    assert face_cos(clip, clip[0], recogniser) > 0.99
    assert face_cos(255 - clip, clip[0], recogniser) < 0.9
    assert face_det(clip, load_backbone("scrfd", tmp_path)) == 1
    write_recogniser(tmp_path / "det_10g.onnx")
    with pytest.raises(UserError, match="has 1 outputs, wanted 9 of a SCRFD"):
        load_backbone("scrfd", tmp_path)
    (tmp_path / "det_10g.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"det_10g.onnx: not an ONNX network"):
        load_backbone("scrfd", tmp_path)


# --- MediaPipe --------------------------------------------------------------------------------------------------------


def test_mediapipe_finds_the_person_of_a_photo() -> None:
    pytest.importorskip("mediapipe", reason="MediaPipe is not installed")
    from xdyna.metrics.backbones import load_backbone
    from xdyna.photo import read_photo

    path = MEDIA / "ref_waterfall.jpg"
    if not path.is_file():
        pytest.skip(f"no {path} (set XDYNA_MEDIA)")
    photo = np.asarray(read_photo(path))[:448:2, 100:400:2]
    finder = load_backbone("mediapipe-faces")
    left_eye, right_eye, nose, left_corner, right_corner = points = finder.find(photo)
    assert left_eye[0] < right_eye[0]
    assert left_corner[0] < right_corner[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_corner[1], right_corner[1])
    wider = np.pad(photo, ((30, 0), (40, 0), (0, 0)))
    assert np.abs(finder.find(wider) - points - [40, 30]).max() < 3
    assert face_det(np.stack([photo, np.full_like(photo, 90)]), finder) == 0.5
