"""DWPose with stand-in networks: a YOLOX head that sees two people, a SimCC head whose nose is the brightest pixel."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.errors import UserError
from xdyna.preprocess.detect import PeopleDetector, build_detector
from xdyna.preprocess.dwpose import DWPoseFinder, to_tracks

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

DETECTOR_SIDE, POSE_SIZE_HW = 128, (96, 72)
FRAME_WH = (192, 128)
# Center and size in frame pixels, and score, of what the stand-in sees: two people, a double of one, a doubtful one.
SEEN = (
    ((50.0, 70.0), (50.0, 100.0), 0.9),
    ((140.0, 60.0), (40.0, 80.0), 0.8),
    ((53.0, 72.0), (52.0, 100.0), 0.7),
    ((100.0, 64.0), (30.0, 60.0), 0.1),
)


def save(path: Path, nodes: list, inputs: tuple[int, int], outputs: dict[str, list[int]], constants: dict) -> Path:
    """Write an ONNX file with one image input of some height and width."""
    make = onnx.helper
    image = make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, *inputs])
    outs = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    weights = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = make.make_graph(nodes, "stand-in", [image], outs, weights)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def detector_file(path: Path) -> Path:
    """Predictions of a YOLOX head before decoding: offsets in cells, logarithms of sizes, objectness, class scores."""
    scale = DETECTOR_SIDE / max(FRAME_WH)  # how the frame is fitted into the network's square
    cells = [
        (column, row, stride)
        for stride in (8, 16, 32)
        for row in range(128 // stride)
        for column in range(128 // stride)
    ]
    raw = np.zeros((1, len(cells), 7), np.float32)
    for index, ((x, y), (width, height), score) in enumerate(SEEN):
        column, row, stride = cells[40 * index]
        raw[0, 40 * index, :2] = x * scale / stride - column, y * scale / stride - row
        raw[0, 40 * index, 2:4] = np.log([width * scale / stride, height * scale / stride])
        raw[0, 40 * index, 4:6] = score, 1.0
    make = onnx.helper.make_node
    nodes = [
        make("ReduceMax", ["image"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        make("Greater", ["brightest", "dark"], ["any"]),
        make("Cast", ["any"], ["lit"], to=1),
        make("Mul", ["raw", "lit"], ["predictions"]),  # a black frame shows nobody
    ]
    constants = {"raw": raw, "dark": np.float32(150)}  # the padding is gray 114
    return save(path, nodes, (DETECTOR_SIDE, DETECTOR_SIDE), {"predictions": list(raw.shape)}, constants)


def pose_file(path: Path, num_points: int = 133) -> Path:
    """The nose at the brightest pixel; every other point at a place of its own in the crop (`crop_place`)."""
    height, width = POSE_SIZE_HW
    make = onnx.helper.make_node
    nodes = []
    for axis, other in (("x", 2), ("y", 3)):
        nodes += [
            make("ReduceMax", ["image"], [f"line_{axis}"], axes=[1, other], keepdims=0),
            make("Reshape", [f"line_{axis}", f"column_{axis}"], [f"tall_{axis}"]),
            make("Mul", [f"tall_{axis}", "split"], [f"pair_{axis}"]),  # two bins a pixel, the first one higher
            make("Reshape", [f"pair_{axis}", f"row_{axis}"], [f"bins_{axis}"]),
            make("Max", [f"bins_{axis}", f"fixed_{axis}"], [f"simcc_{axis}"]),
        ]
    constants: dict = {"split": np.array([[[0.4, 0.3]]], np.float32)}
    for axis, side in (("x", width), ("y", height)):
        constants |= {
            f"column_{axis}": np.array([1, side, 1]),
            f"row_{axis}": np.array([1, 1, 2 * side]),
            f"fixed_{axis}": fixed(num_points, side, "xy".index(axis)),
        }
    outputs = {"simcc_x": [1, num_points, 2 * width], "simcc_y": [1, num_points, 2 * height]}
    return save(path, nodes, POSE_SIZE_HW, outputs, constants)


def crop_place(point: int) -> tuple[int, int]:
    """Where the stand-in sees a point that is not the nose, in pixels of the network's input."""
    return 5 + 7 * point % 60, 8 + 11 * point % 80


def fixed(num_points: int, side: int, axis: int) -> np.ndarray:
    """Heat of all points but the nose along one axis, two bins a pixel, a score of 0.8."""
    heat = np.full((1, num_points, 2 * side), -9, np.float32)
    for point in range(1, num_points):
        heat[0, point] = 0
        heat[0, point, 2 * crop_place(point)[axis]] = 20
    return heat


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return detector_file(tmp_path / "det.onnx"), pose_file(tmp_path / "pose.onnx")


def frame(*spots: tuple[int, int]) -> np.ndarray:
    """Dark, with a bright 3x3 spot at each place."""
    image = np.full((FRAME_WH[1], FRAME_WH[0], 3), 30, np.uint8)
    for x, y in spots:
        image[y - 1 : y + 2, x - 1 : x + 2] = 250
    return image


def test_two_people_come_natively_largest_first(files: tuple[Path, Path]) -> None:
    people = DWPoseFinder(*files).find(frame((40, 90), (150, 50)), 6)
    assert len(people) == 2
    for person, spot, (center, size, _) in zip(people, ((40, 90), (150, 50)), SEEN, strict=False):
        assert person.size_wh == FRAME_WH
        assert np.abs(person.joints_xy[0, 0] - spot).max() <= 2.5  # an input pixel is up to 1.3 frame pixels
        height, width = POSE_SIZE_HW
        side = 1.25 * max(size[0] / width, size[1] / height)
        for got, point in (
            (person.joints_xy[0, 2], 6),
            (person.hands_xy[0, 1, 20], 132),
            (person.face_xy[0, 0], 23),
        ):
            wanted = (np.array(crop_place(point)) - (width / 2, height / 2)) * side + center
            assert np.allclose(got, wanted, atol=0.01)
        assert (person.joints_conf > 0.3).all()
        assert person.face_conf[0] > 0.3
    assert len(DWPoseFinder(*files).find(frame((40, 90), (150, 50)), 1)) == 1


def test_clip_through_the_detector(files: tuple[Path, Path]) -> None:
    clip = [frame((40 + step, 90), (150, 50)) for step in range(5)]
    detector, line = build_detector("auto", dwpose_files=files)
    assert line == "pose: detector dwpose (its files were given)"
    tracks = detector.detect(clip, fps=8.0)
    assert np.abs(tracks.joints_xy[:, 0, 0] - (40 + np.arange(5))).max() <= 2.5
    second, _ = build_detector("dwpose", dwpose_files=files, person=2)
    assert np.abs(second.detect(clip, fps=8.0).joints_xy[:, 0] - (150, 50)).max() <= 2.5
    assert isinstance(second, PeopleDetector)
    assert len(second.detect_all(clip, fps=8.0)) == 2


def test_black_clip_is_nobody(files: tuple[Path, Path]) -> None:
    detector, _ = build_detector("dwpose", dwpose_files=files, video=Path("dance.mp4"))
    with pytest.raises(UserError, match=r"^dance\.mp4: no person found, every frame is black"):
        detector.detect([np.zeros((128, 192, 3), np.uint8)] * 3, fps=8.0)


def test_joints_are_in_openpose_order() -> None:
    points = np.stack([np.arange(133), 2 * np.arange(133)], axis=1).astype(np.float32)
    scores = np.full(133, 0.9, np.float32)
    scores[5] = 0.4
    tracks = to_tracks(points, scores, (640, 480))
    assert tracks.joints_xy[0, :, 0].tolist() == [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert tracks.joints_conf[0, 1] == np.float32(0.4)
    assert tracks.hands_xy[0, 0, 0, 0] == 91  # the left hand's wrist
    assert tracks.hands_xy[0, 1, 20, 0] == 132
    assert tracks.face_xy[0, [0, 67], 0].tolist() == [23, 90]


def test_wrong_files_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    det, pose = files
    with pytest.raises(UserError, match=r"pose\.onnx: has 2 outputs, wanted 1; are detector and pose file swapped"):
        DWPoseFinder(pose, det)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"text\.onnx: not an ONNX file"):
        DWPoseFinder(tmp_path / "text.onnx", pose)
    body_only = pose_file(tmp_path / "body.onnx", num_points=17)
    with pytest.raises(UserError, match=r"body\.onnx: gives 17 points, wanted 133"):
        DWPoseFinder(det, body_only).find(frame((40, 90)), 1)
    make = onnx.helper.make_node
    other = save(tmp_path / "other.onnx", [make("Identity", ["image"], ["out"])], (64, 64), {"out": [1, 3, 64, 64]}, {})
    with pytest.raises(UserError, match=r"other\.onnx: gives an output of shape"):
        DWPoseFinder(other, pose).find(frame((40, 90)), 1)
