"""What a user can get wrong, through the command: one line on stderr that names it, exit status 2, nothing left."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from animate_inputs import files_in, make_driver, make_photo, waving_tracks
from clips import make_clip
from numpy.typing import NDArray
from PIL import Image

from xdyna.cli import main
from xdyna.preprocess.tracks import SUFFIX
from xdyna.video import VideoReader


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good photo.png and dance.mp4 and the tracks of both."""
    folder = tmp_path_factory.mktemp("inputs")
    make_photo(folder / "photo.png")
    make_driver(folder / "dance.mp4", 6)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where outputs go; empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Command:
    """`xdyna animate` with good inputs unless said otherwise."""

    def __init__(self, inputs: Path, model: Path, capfd: pytest.CaptureFixture[str], here: Path) -> None:
        self.inputs, self.model, self.capfd, self.here = inputs, model, capfd, here

    def arguments(
        self, *more: str, ref: Path | None = None, video: Path | None = None, model: Path | None = None
    ) -> list[str]:
        return [
            "animate", "--ref", str(ref or self.inputs / "photo.png"),
            "--pose-video", str(video or self.inputs / "dance.mp4"), "--model", str(model or self.model),
            "-o", "out.mp4", "--steps", "1", *more,
        ]  # fmt: skip

    def refused(self, *more: str, **paths: Path) -> str:
        """Run; the command must refuse. Returns the one line."""
        assert main(self.arguments(*more, **paths)) == 2
        error = self.capfd.readouterr().err
        assert error.startswith("xdyna: error: ")
        assert error.count("\n") == 1, error
        assert files_in(self.here) == []
        return error.removeprefix("xdyna: error: ").rstrip("\n")

    def works(self, *more: str, **paths: Path) -> str:
        """Run; the command must write a finite video. Returns what it said on stderr."""
        assert main(self.arguments(*more, **paths)) == 0
        assert files_in(self.here) == ["out.mp4", "out.mp4.json"]
        return self.capfd.readouterr().err


@pytest.fixture
def command(inputs: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], here: Path) -> Command:
    return Command(inputs, tiny_folder, capfd, here)


# --- video -------------------------------------------------------------------------------------------------------


def only_sound(path: Path) -> None:
    """A video file in which there is a sound track and not one picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        container.mux([*stream.encode(frame), *stream.encode(None)])


def noise(number: int, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame that takes many bytes."""
    return np.random.default_rng(number).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)


def cut_at(path: Path, share: float, **options: str) -> None:
    make_clip(path, 24, options=options, draw=noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damaged(path: Path) -> None:
    make_clip(path, 24)
    data = bytearray(path.read_bytes())
    data[:64] = os.urandom(64)
    path.write_bytes(data)


BROKEN_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "wanted"),
    "damaged header": (damaged, "wanted"),
    "text": (lambda path: path.write_text("This is not a video.\n" * 50), "wanted"),
    "no picture": (only_sound, "wanted"),
    "truncated, index lost": (lambda path: cut_at(path, 0.5), "wanted"),
    "truncated, index first": (lambda path: cut_at(path, 0.6, movflags="faststart"), "wanted a whole video"),
    "folder": (lambda path: path.mkdir(), "folder"),
}


@pytest.mark.parametrize("kind", BROKEN_VIDEOS)
def test_broken_videos(command: Command, tmp_path: Path, kind: str) -> None:
    make, wanted = BROKEN_VIDEOS[kind]
    path = tmp_path / "driver.mp4"
    make(path)
    waving_tracks(24, (96, 64)).save(tmp_path / f"driver{SUFFIX}")
    line = command.refused(video=path)
    assert line.startswith(str(path))
    assert wanted in line


def test_a_truncated_video_is_taken_as_far_as_it_goes_when_asked(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "driver.mp4"
    cut_at(path, 0.6, movflags="faststart")
    waving_tracks(24, (96, 64)).save(tmp_path / f"driver{SUFFIX}")
    assert command.works("--frames", "4", video=path) == ""


def plain_clip(path: Path, value: int) -> Path:
    return make_clip(path, 4, draw=lambda number, size_wh: np.full((size_wh[1], size_wh[0], 3), value, np.uint8))


def test_no_person_in_the_video(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    line = command.refused(video=plain_clip(tmp_path / "wall.mp4", 140))
    assert line.startswith(f"{tmp_path / 'wall.mp4'}: no person found")


def test_an_all_black_video(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    line = command.refused(video=plain_clip(tmp_path / "night.mp4", 0))
    assert line.startswith(f"{tmp_path / 'night.mp4'}: no person found, every frame is black")


def test_no_person_in_the_photo_is_a_warning(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    photo = make_photo(tmp_path / "wall.png", with_tracks=False)
    Image.new("RGB", (64, 96), (140, 140, 140)).save(photo)
    error = command.works(ref=photo)
    assert f"{photo}: no person found" in error
    assert "not aligned" in error


def test_no_person_in_the_photo_when_alignment_was_asked_for(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    photo = tmp_path / "wall.png"
    Image.new("RGB", (64, 96), (140, 140, 140)).save(photo)
    assert command.refused("--align", "bones", ref=photo).startswith(f"{photo}: no person found")


def test_no_face_is_a_warning(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    video = make_driver(tmp_path / "faceless.mp4", 4, face=False)
    error = command.works(video=video)
    assert "no face found" in error
    assert error.count("\n") == 1


def test_a_person_who_leaves_the_frame(command: Command, tmp_path: Path) -> None:
    video = make_driver(tmp_path / "leaves.mp4", 8, with_tracks=False)
    tracks = waving_tracks(8)
    tracks.joints_conf[4:], tracks.face_conf[4:] = 0, 0
    tracks.save(tmp_path / f"leaves{SUFFIX}")
    error = command.works(video=video)
    assert "face found in 4 of 8 frames" in error


@pytest.mark.parametrize("value", [0, 20])
def test_constant_pose_maps_give_no_nan(command: Command, tmp_path: Path, value: int) -> None:
    """The official code divides by the clip's range, which is zero here."""
    maps = plain_clip(tmp_path / "maps.mp4", value)
    assert f"{maps}: every pixel of every frame is the same" in command.works("--pose-maps", str(maps), "--no-face")
    frames = list(VideoReader("out.mp4"))
    assert len(frames) == 4
    assert all(frame.std() > 1 for frame in frames), "NaN would be written as one flat colour"


@pytest.mark.parametrize("num_frames", [1, 3])
def test_very_short_videos(command: Command, tmp_path: Path, num_frames: int) -> None:
    assert command.works(video=make_driver(tmp_path / "short.mp4", num_frames)) == ""
    assert len(list(VideoReader("out.mp4"))) == num_frames


@pytest.mark.slow
def test_a_video_of_2000_frames(command: Command, tmp_path: Path) -> None:
    video = make_driver(tmp_path / "long.mp4", 2000, size_wh=(32, 48))
    assert command.works("--no-face", "--window", "16", video=video) == ""
    assert sum(1 for _ in VideoReader("out.mp4")) == 2000


# --- photo -------------------------------------------------------------------------------------------------------


def sized(size_wh: tuple[int, int]) -> Callable[[Path], None]:
    return lambda path: Image.new("L", size_wh, 90).save(path, format="PNG")


BROKEN_PHOTOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "text": (lambda path: path.write_text("not a picture"), "wanted a picture"),
    "20,000 px": (sized((20_000, 100)), "20000x100 px; wanted at most"),
    "1x1": (sized((1, 1)), "1x1 px; wanted at least"),
    "folder": (lambda path: path.mkdir(), "folder"),
}


@pytest.mark.parametrize("kind", BROKEN_PHOTOS)
def test_broken_photos(command: Command, tmp_path: Path, kind: str) -> None:
    make, wanted = BROKEN_PHOTOS[kind]
    path = tmp_path / "photo.png"
    make(path)
    line = command.refused(ref=path)
    assert line.startswith(str(path))
    assert wanted in line


# --- output ------------------------------------------------------------------------------------------------------


def test_output_folder_that_is_not_there(command: Command) -> None:
    assert command.refused("-o", "none/out.mp4").startswith("none/out.mp4: cannot write: its folder does not exist")


@pytest.mark.parametrize("name", ["out.avi", "out.txt"])
def test_output_of_unknown_kind(command: Command, name: str) -> None:
    assert command.refused("-o", name).startswith(f"{name}: cannot write")


def test_unknown_codec(command: Command) -> None:
    assert "h264" in command.refused("--codec", "h263+")


def test_codec_that_takes_no_frames_so_small(command: Command) -> None:
    line = command.refused("--codec", "h265")
    assert line == "codec h265 takes frames of 64x32 px and up, got 32x48; wanted h264, or larger frames"


def test_no_output_replaces_an_input(command: Command, tmp_path: Path) -> None:
    """Neither the comparison nor the maps, whose names follow from others."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("out.compare.mp4", "dance.mp4", "dance.pose.mp4"):
        shutil.copy(command.inputs / "dance.mp4", folder / name)
    shutil.copy(command.inputs / f"dance{SUFFIX}", folder / f"dance{SUFFIX}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    maps = [f"--pose-maps={folder / 'dance.pose.mp4'}", "--no-face"]
    for options, replaced in (
        (["-o", str(folder / "out.mp4"), "--compare"], folder / "out.compare.mp4"),
        (["--save-maps", str(folder), *maps], folder / "dance.pose.mp4"),
    ):
        video = folder / ("out.compare.mp4" if "--compare" in options else "dance.mp4")
        line = command.refused(*options, video=video)
        assert line == f"{replaced}: is an input of this very run; wanted another name for the output"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_places_are_looked_at_before_the_model_runs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "out.compare.mp4").mkdir()
    for options in (["--save-maps", str(tmp_path / "file")], ["-o", str(tmp_path / "out.mp4"), "--compare"]):
        assert main(command.arguments(*options)) == 2
        said = command.capfd.readouterr()
        assert said.err.startswith(f"xdyna: error: {tmp_path}")
        assert "pose" not in said.out


def run_in_subprocess(
    arguments: list[str], before: Callable[[], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from xdyna.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, preexec_fn=before
    )


def without_root_powers() -> None:
    """Let file permissions bind root too (Linux: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    import ctypes

    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="drops Linux capabilities")
def test_read_only_output_folder(command: Command, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = run_in_subprocess(command.arguments("-o", str(locked / "out.mp4")), without_root_powers)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"xdyna: error: {locked / 'out.mp4'}: cannot write: no permission to write there; choose another folder\n"
    )
    assert files_in(locked) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 KiB, of which the job's lock takes 4."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(command: Command, small_disk: Path) -> None:
    output = small_disk / "out.mp4"
    line = command.refused("-o", str(output))
    assert line == f"{output}: cannot write: no space left on the disk; free some or choose another folder"
    assert files_in(small_disk) == []


@pytest.mark.skipif(sys.platform != "linux", reason="sets a resource limit as on Linux")
def test_file_size_limit(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same moment as a full disk, where no small disk can be mounted."""
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else a module imported meanwhile is cached cut short
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        line = command.refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("out.mp4: cannot write: ")


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--set", "gidance=2"], "--set gidance=2: unknown key 'gidance'; did you mean guidance"),
        (["--size", "128x192"], "--size: width x height is 128x192, this model takes 32x48 to 64x96"),
        (["--size", "33x48"], "--size: width x height is 33x48, this model takes"),
        (["--steps", "1000"], "--steps: got 1000, this model takes at most 999"),
        (["--window", "2"], "wanted an overlap (2) smaller than the window (2); this model's own settings fill in"),
        (["--window", "99"], "--window: got 99 frames, this model takes at most"),
        (["--prompt", "a dancer"], "--prompt: this model has no text encoder"),
        (["--negative-prompt", "blur"], "--negative-prompt: this model has no text encoder"),
        (["--scheduler", "eulr"], "--scheduler: got 'eulr', wanted 'ddim'"),
        (["--device", "tpu9"], "--device: got 'tpu9', wanted auto, cpu"),
        (["--dtype", "float8"], "--dtype: got 'float8', wanted 'auto'"),
        (["--start", "99"], "start is 99 s; wanted less than its duration"),
        (["--fps", "-1"], "--fps: got -1.0, wanted"),
        (["--fps", "500"], "fps is 500; wanted"),
        (["--start", "soon"], "--start: got 'soon', wanted"),
        (["--detector", "dwpose"], "--dwpose-det FILE"),
        (["--detector", "guess"], "--detector: got 'guess', wanted 'auto'"),
        (["--tracks", "none.tracks.npz"], "none.tracks.npz: no such file"),
        (["--person", "3"], "a tracks file holds one person"),
        (
            ["--lora", "none.safetensors:nan"],
            "got the scale 'nan', wanted a finite number",
        ),
        (["--lora", "none.safetensors"], "--lora none.safetensors: no such file"),
        (["--config", "none.yaml"], "none.yaml: no such config file"),
    ],
)
def test_settings(command: Command, options: list[str], wanted: str) -> None:
    assert wanted in command.refused(*options)


def test_unknown_key_in_a_config_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stepz: 3\n")
    assert command.refused("--config", str(file)) == f"{file}: unknown key 'stepz'; did you mean steps?"


def test_nothing_to_drive_with(command: Command) -> None:
    arguments = command.arguments()
    del arguments[3:5]
    assert main(arguments) == 2
    assert "--pose-video is missing" in command.capfd.readouterr().err


# --- model -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_weights(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    save_file(weights, file)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_model_that_is_not_there(command: Command, tmp_path: Path) -> None:
    assert command.refused(model=tmp_path / "none").endswith("neither auto, tiny, x-dyna nor an existing folder")
    (tmp_path / "file").touch()
    assert "is a file, wanted a model folder" in command.refused(model=tmp_path / "file")
    (tmp_path / "folder").mkdir()
    assert "has no model_index.json" in command.refused(model=tmp_path / "folder")


def test_model_of_another_kind(command: Command, model: Path) -> None:
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("XDynaPipeline", "StableDiffusionPipeline"))
    assert command.refused(model=model) == (
        f"{model}: holds a StableDiffusionPipeline, wanted an XDynaPipeline; `xdyna convert` makes one"
    )
    index.write_text("{")
    assert command.refused(model=model).startswith(f"{index}: cannot be read as JSON")


def test_weights_with_nan(command: Command, model: Path) -> None:
    def spoil(weights: dict[str, object]) -> None:
        weights["conv_in.weight"][0, 0, 0, 0] = float("nan")  # type: ignore[index]

    change_weights(model / WEIGHTS, spoil)
    assert command.refused(model=model) == (
        f"{model}/unet: weight conv_in.weight holds NaN or infinite values; the file is damaged"
    )


def test_weights_that_do_not_fit(command: Command, model: Path) -> None:
    change_weights(model / WEIGHTS, lambda weights: weights.update({"conv_in.bias": torch.zeros(3)}))
    assert command.refused(model=model).startswith(f"{model}: not a model that can be loaded")


def test_weights_that_are_missing_or_cut_short(command: Command, model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert command.refused(model=model).startswith(f"{model}: not a model that can be loaded")
    (model / WEIGHTS).unlink()
    assert command.refused(model=model).startswith(f"{model}: not a model that can be loaded")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_pickled_weights_are_never_run(command: Command, model: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (model / WEIGHTS).unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Evil(trap)}))
    assert command.refused(model=model).startswith(f"{model}: not a model that can be loaded")
    lora = tmp_path / "lora.bin"
    lora.write_bytes(pickle.dumps({"unet": Evil(trap)}))
    assert ".bin file, wanted .safetensors" in command.refused("--lora", str(lora))
    renamed = lora.rename(tmp_path / "lora.safetensors")
    assert command.refused("--lora", str(renamed)).startswith(f"--lora {renamed}: does not fit this model")
    assert not trap.exists()


def test_unknown_key_in_the_models_own_preset(command: Command, model: Path) -> None:
    (model / "animate.yaml").write_text("stepz: 2\n")
    assert command.refused(model=model).startswith(f"{model / 'animate.yaml'}: unknown key 'stepz'; did you mean steps")


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_checkpoints_that_cannot_be_converted(command: Command, tmp_path: Path) -> None:
    from official_files import SETTINGS, small_unet, write_official

    trap, unet, files = tmp_path / "trap", small_unet(), write_official(tmp_path / "official")
    options = [word for name, path in files.given().items() for word in (f"--{name.replace('_', '-')}", str(path))]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    options += ["--config", str(tmp_path / "small.yaml")]
    broken: list[tuple[str, object, str]] = [
        ("unet", {"state_dict": {"conv_in.weight": Evil(trap)}}, "refused: this pickle wants to run code"),
        ("unet", {**unet, "conv_in.bias": unet["conv_in.bias"] * float("nan")}, "conv_in.bias"),
        ("pose_controlnet", unet, "wanted the ControlNet, which has controlnet_cond_embedding.conv_in.weight"),
    ]
    for part, content, wanted in broken:
        path = files.given()[part]
        good = path.read_bytes()
        torch.save(content, path)
        assert main(["convert", *options, "-o", "model"]) == 2
        error = command.capfd.readouterr().err
        assert error.startswith("xdyna: error: ")
        assert wanted in error
        assert error.count("\n") == 1
        assert files_in(command.here) == []
        path.write_bytes(good)
    assert not trap.exists()


# --- Ctrl-C and SIGTERM ------------------------------------------------------------------------------------------


def test_a_signal_removes_the_unfinished_file(command: Command) -> None:
    """Interrupted while frames are being written: the temporary files are there, then gone.

    Each signal comes once more while they are removed. One process gets both, since starting one takes longer than
    the rest.
    """
    code = (
        "import os, signal, sys\n"
        "import xdyna.video.write as write\n"
        "signals, sent = [signal.SIGINT, signal.SIGTERM], []\n"
        "class Interrupted(write.VideoWriter):\n"
        "    def write(self, frame):\n"
        "        super().write(frame)\n"
        "        if self.num_frames == 3:\n"
        "            print('parts', [n for n in os.listdir('.') if '.part' in n], flush=True)\n"
        "            sent.append(signals.pop(0))\n"
        "            os.kill(os.getpid(), sent[-1])\n"
        "    def __exit__(self, *error):\n"
        "        os.kill(os.getpid(), sent[-1])\n"
        "        super().__exit__(*error)\n"
        "import xdyna.video\n"
        "xdyna.video.VideoWriter = Interrupted\n"
        "from xdyna.cli import main\n"
        "print('first', main(), os.listdir('.'), flush=True)\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.arguments()], capture_output=True, text=True, check=False
    )
    parts = [line for line in done.stdout.splitlines() if line.startswith("parts")]
    assert len(parts) == 2
    assert all(".mp4" in line and ".json" in line for line in parts)
    assert "first 130 []" in done.stdout.splitlines()
    assert done.returncode == 143
    assert done.stderr == "xdyna: error: interrupted\nxdyna: error: terminated\n"
    assert files_in(command.here) == []


def test_ctrl_c_while_the_model_runs(command: Command) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "import sys; from xdyna.cli import main; sys.exit(main())",
         *command.arguments("--steps", "900", "--no-resume")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("pose maps") for line in process.stdout)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error == "xdyna: error: interrupted\n"
    assert files_in(command.here) == []
