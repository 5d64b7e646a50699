"""Networks from files: published names and shapes, the loaders with small stand-ins, and what is refused."""

import json
import pickle
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub
from metric_networks import NARROW, drawn, without_hashes, write_all
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.hub import HuggingFaceHub
from xdyna.metrics import backbones
from xdyna.metrics.backbones import find_backbone, known_backbones, load_backbone, on_hub
from xdyna.metrics.nets.i3d import I3D, fitted, same_padding, same_pool
from xdyna.metrics.nets.inception import InceptionV3
from xdyna.metrics.nets.iresnet import DEPTHS, IResNet
from xdyna.metrics.nets.perceptual import ALEX, VGG, Lpips
from xdyna.metrics.registry import METRICS, available
from xdyna.models import pull

FACTS = json.loads((Path(__file__).parent / "backbone_facts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("networks")
        patch.setenv("XDYNA_CACHE", str(base / "cache"))
        without_hashes(base, patch)
        yield write_all(base / "networks")


def videomae() -> nn.Module:
    from transformers import VideoMAEConfig

    from xdyna.metrics.nets.videomae import VideoMae

    return VideoMae(VideoMAEConfig(  # of few patches: no tensor depends on their number
        image_size=28, patch_size=14, num_frames=2, hidden_size=1408, num_hidden_layers=40, num_attention_heads=16,
        intermediate_size=6144, use_mean_pooling=True,
    ))  # fmt: skip


FULL: dict[str, Callable[[], nn.Module]] = {
    "i3d": I3D,
    "dti3d": lambda: I3D(18, "pooled", 1e-5),
    "inception": InceptionV3,
    "lpips-alex": lambda: Lpips(ALEX),
    "lpips-vgg": lambda: Lpips(VGG),
    "adaface": lambda: IResNet(DEPTHS["ir_101"]),
    "videomae": videomae,
}


@pytest.mark.parametrize("name", FULL)
def test_full_networks_have_the_published_tensors(name: str) -> None:
    """Names and shapes as public code gives them, and sizes of public files, on networks that hold no values.

    What a file holds beside the tensors (names, offsets) is small; the tensors that we leave aside are listed.
    """
    fact = FACTS[name]
    with torch.device("meta"):
        state = FULL[name]().state_dict()
    for key, shape in fact["tensors"].items():
        assert list(state[key].shape) == shape, key
    if count := fact.get("num_tensors"):
        assert len(state) == count - fact["num_left_aside"]
    if size := fact.get("file_bytes"):
        width = fact.get("bytes_per_value", 4)
        ours = sum(value.numel() * (8 if value.dtype == torch.int64 else width) for value in state.values())
        ours += (fact["values_left_aside"] - fact.get("values_of_other_files", 0)) * width
        assert ours <= size <= ours + fact["most_extra_bytes"]


def test_lpips_weights_of_another_library_fit() -> None:
    """The one published file that can be had here: that of LPIPS's linear layers, in the wheel of torchmetrics."""
    spec = find_spec("torchmetrics")  # not imported: that takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("torchmetrics is not installed")
    shelf = Path(spec.origin).parent / "functional" / "image" / "lpips_models"
    for name, file, trunk in (("lpips-alex", "alex.pth", ALEX), ("lpips-vgg", "vgg.pth", VGG)):
        published = torch.load(shelf / file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            state = Lpips(trunk).state_dict()
        assert {key: value.shape for key, value in published.items()} == {
            key: value.shape for key, value in state.items() if key.startswith("lin")
        }
        known = known_backbones()[name].variants[0].files[file]
        assert backbones.sha256_of(shelf / file) == known


def test_manifest_is_whole() -> None:
    for name, backbone in known_backbones().items():
        assert backbone.about
        assert backbone.variants, name
        assert backbone.needs in (None, *backbones.EXTRAS)
        for variant in backbone.variants:
            assert variant.source
            assert variant.licence
            for place in (variant.load, backbone.class_name):
                module, _, attribute = place.partition(":")
                assert hasattr(__import__(module, fromlist=["_"]), attribute)
    assert {metric.backbone for metric in METRICS.values()} - {None} <= set(known_backbones())


# --- stand-ins --------------------------------------------------------------------------------------------------------

CLIPS = torch.rand((1, 3, 16, 36, 28), generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand((2, 3, 40, 48), generator=torch.Generator().manual_seed(0))


def filled(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def test_loaded_networks_are_those_that_were_saved(folder: Path) -> None:
    """By way of the file and its shapes, or built by hand: the same features; frozen, and the same again."""
    wanted = {
        "i3d": filled(I3D(7, narrow=NARROW), drawn(I3D(7, narrow=NARROW), 1)),
        "dti3d": filled(I3D(5, "pooled", 1e-5, NARROW), drawn(I3D(5, narrow=NARROW), 2)),
        "inception": filled(InceptionV3(2 * NARROW), drawn(InceptionV3(2 * NARROW))),
    }
    sizes = {"i3d": 7, "dti3d": 1024 // NARROW, "inception": 2048 // (2 * NARROW)}
    for name, network in wanted.items():
        loaded = load_backbone(name, folder)
        inputs = PICTURES if name == "inception" else CLIPS
        found = loaded(inputs)
        assert found.shape == (len(inputs), sizes[name])
        assert torch.equal(found, network(inputs))
        assert found.std() > 1e-3
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_videomae_computes_as_its_published_code(folder: Path) -> None:
    """Against the formulas written out: pre-norm blocks, keys without bias, fixed sines, mean of tokens, norm."""
    network = load_backbone("videomae", folder)
    file = torch.load(folder / "vit_g_hybrid_pt_1200e_ssv2_ft.pth", weights_only=True)["module"]
    state = {key: value.float() for key, value in file.items()}
    clips = fitted(CLIPS, 224)
    x = torch.nn.functional.conv3d(clips, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], (2, 56, 56))
    x = x.flatten(2).transpose(1, 2)
    width = x.shape[2]
    for token in range(x.shape[1]):
        for channel in range(width):
            angle = torch.tensor(token / 10000 ** (2 * (channel // 2) / width))
            x[:, token, channel] += angle.cos() if channel % 2 else angle.sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for block in ("blocks.0", "blocks.1"):
        bias = torch.cat([state[f"{block}.attn.q_bias"], torch.zeros(width), state[f"{block}.attn.v_bias"]])
        q, k, v = (norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T + bias).chunk(3, -1)
        mixed = (q @ k.transpose(1, 2) / width**0.5).softmax(-1) @ v
        x = x + mixed @ state[f"{block}.attn.proj.weight"].T + state[f"{block}.attn.proj.bias"]
        inner = norm(x, f"{block}.norm2") @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"]
        x = x + nn.functional.gelu(inner) @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
    assert torch.allclose(network(CLIPS), norm(x.mean(1), "fc_norm"), atol=1e-4)
    assert network.num_frames == 16


@torch.no_grad()
def test_clip_computes_as_transformers(folder: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    network = load_backbone("clip", folder)
    theirs = CLIPVisionModelWithProjection.from_pretrained(folder / "clip")
    square = torch.rand((1, 3, 28, 28), generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    wanted = theirs((square - mean) / deviation).image_embeds
    assert torch.allclose(network(square), wanted / wanted.norm(), atol=1e-5)
    wide = torch.cat([torch.zeros(1, 3, 28, 10), square, torch.ones(1, 3, 28, 10)], 3)
    assert torch.allclose(network(wide), network(square), atol=1e-6)  # only the middle counts


def test_recognition_network_is_told_from_its_file(folder: Path) -> None:
    from xdyna.metrics.nets.iresnet import load_adaface

    path = folder / "adaface_ir50_ms1mv2.ckpt"
    faces = torch.rand((2, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blue_first, red_first = load_adaface(path), load_adaface(path, bgr=False)
        found = blue_first(faces)
        assert found.shape == (2, 16)
        assert torch.allclose(found.norm(dim=1), torch.ones(2))
        assert torch.allclose(found, red_first(faces.flip(1)), atol=1e-6)
        assert not torch.allclose(found, red_first(faces), atol=1e-3)
    assert len(blue_first.body) == 5


def test_padding_is_tensorflows() -> None:
    """As much as makes a stride of s leave 1/s, rounded up; the odd zero goes behind."""
    cases = [
        (7, 3, 2, (1, 1)),
        (8, 3, 2, (0, 1)),
        (224, 7, 2, (2, 3)),
        (5, 3, 1, (1, 1)),
        (4, 1, 2, (0, 0)),
        (8, 2, 2, (0, 0)),
    ]
    for size, kernel, stride, wanted in cases:
        assert tuple(same_padding(torch.Size([size]), (kernel,), (stride,))) == wanted  # type: ignore[arg-type]
    x = torch.full((1, 1, 3, 4, 4), -1.0)
    assert same_pool(x, (1, 3, 3), (1, 2, 2)).shape == (1, 1, 3, 2, 2)
    assert same_pool(x, (1, 3, 3), (1, 2, 2))[0, 0, 0].tolist() == [[-1, 0], [0, 0]]  # the padding counts as 0


def test_inception_pools_as_fid_wants() -> None:
    """Means leave the padding out; the last module takes the largest value instead."""
    network = InceptionV3(2 * NARROW).eval()
    spot = torch.zeros((1, 2048 // (2 * NARROW), 4, 4))
    spot[:, :, 0, 0] = 8
    for name, wanted in (("Mixed_7b", 8 / 4), ("Mixed_7c", 8.0)):
        block = getattr(network, name)
        block.branch_pool = nn.Identity()
        inside = block.branch1x1.conv.in_channels
        with torch.no_grad():
            pooled = block(spot[:, :inside])[:, -inside:]
        assert torch.allclose(pooled[:, :, 0, 0], torch.tensor(wanted))
        assert torch.allclose(pooled[:, :, 1, 1], torch.tensor(8 / 9 if name == "Mixed_7b" else 8.0))
        assert not pooled[:, :, 2:, 2:].any()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_absent_weights_leave_metrics_out_and_say_so(folder: Path, tmp_path: Path) -> None:
    here, missing = available(["fid", "fvd", "psnr", "dtfvd"], tmp_path)
    assert [metric.name for metric in here] == ["psnr"]
    reasons = {one.name: one.reason for one in missing}
    assert set(reasons) == {"fid", "fvd", "dtfvd"}
    assert "I3D_16.pth.tar (of https://github.com/CompVis" in reasons["dtfvd"]
    assert str(tmp_path / "dti3d") in reasons["dtfvd"]
    assert [metric.name for metric in available(["fid", "fvd", "psnr", "dtfvd"], folder)[0]] == [
        "fid", "fvd", "psnr", "dtfvd",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"videomae are not there.*xdyna models pull videomae"):
        load_backbone("videomae")
    with pytest.raises(UserError, match="unknown backbone 'inceptoin'; did you mean inception"):
        find_backbone("inceptoin")
    with pytest.raises(UserError, match="no such folder"):
        find_backbone("i3d", tmp_path / "nowhere")


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "MANIFEST", Path(backbones.__file__).with_name("backbones.json"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(UserError, match=r"has SHA-256 \w{64}, wanted 6726825d0af5f729.*get it again"):
        load_backbone("inception", tmp_path)


def test_code_is_not_run_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(_Scripted()).save(str(path))
    with pytest.raises(UserError, match=r"i3d_torchscript.pt is there, but holds code"):
        load_backbone("i3d", tmp_path)
    network = load_backbone("i3d", tmp_path, trust_code=True)
    inputs = torch.full((1, 3, 16, 8, 8), 0.75)
    assert torch.allclose(network(inputs), torch.full((1, 2), 0.5))  # brought to -1..1
    path.rename(tmp_path / "i3d_pretrained_400.pt")  # under the other name it is no file of tensors
    with pytest.raises(UserError, match="is a TorchScript archive, which holds code"):
        load_backbone("i3d", tmp_path)


class _Scripted(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        if rescale or resize or not return_features:
            raise RuntimeError("called otherwise than it should be")
        return x.mean(dim=(2, 3, 4))[:, :2]


def test_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "I3D_16.pth.tar"
    good = torch.load(folder / path.name, weights_only=True)["state_dict"]

    def refused(content: object, reason: str) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=reason) as found:
            load_backbone("dti3d", tmp_path)
        assert str(path) in str(found.value)

    key = "Mixed_4c.b1b.conv3d.weight"
    refused({**good, key: good[key][:1]}, r"Mixed_4c.b1b.conv3d.weight is \[1, .*, wanted \[28")
    refused({**good, key: good[key] * float("nan")}, "not finite")
    refused({name: value for name, value in good.items() if "Mixed_5" not in name}, "lacks 60 of 344 tensors, Mixed_5b")
    refused({"weight": torch.zeros(3)}, "has no tensor Conv3d_1a_7x7.conv3d.weight")
    refused([1, 2], "holds a list")
    refused(b"<html>", "refused: damaged")
    refused(pickle.dumps(_Dangerous()), "refused: damaged, or it would build more than tensors")


def test_settings_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "clip" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    for content in ('{"model_type": "bert"}', "{", '{"model_type": "clip"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json: not the settings of a CLIP"):
            load_backbone("clip", tmp_path)
    (tmp_path / "config.json").write_text((folder / "clip" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(UserError, match="not a safetensors file"):
        load_backbone("clip", tmp_path)


class _Dangerous:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("this must not be printed",)


def test_old_files_without_counts_of_batches(folder: Path, tmp_path: Path) -> None:
    name = "pt_inception-2015-12-05-6726825d.pth"
    state = torch.load(folder / name, weights_only=True)
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / name)
    with torch.no_grad():
        assert torch.equal(load_backbone("inception", tmp_path)(PICTURES), load_backbone("inception", folder)(PICTURES))


def test_pulled_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetched file is found in the cache by the network's name."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    name = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
    path = tmp_path / "hub" / "OpenGVLab" / "VideoMAE2" / "mae-g" / name
    path.parent.mkdir(parents=True)
    path.write_bytes((folder / name).read_bytes())
    with LocalHub(tmp_path / "hub").running() as hub:
        pulled = pull(on_hub("videomae"), HuggingFaceHub(hub.url))
    assert find_backbone("videomae")[1] == [pulled / "mae-g" / name]
    with torch.no_grad():
        assert load_backbone("videomae")(CLIPS).shape == (1, 24)
    with pytest.raises(UserError, match="dti3d is not on the hub; its files come from https"):
        on_hub("dti3d")


def test_commands_list_and_pull_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from xdyna.cli.models import app

    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbones, "MANIFEST", Path(backbones.__file__).with_name("backbones.json"))
    listed = CliRunner().invoke(app, ["list", "--json"])
    networks = {row["name"]: row for row in json.loads(listed.stdout)["networks"]}
    assert set(networks) == set(known_backbones())
    assert networks["joints-synth"]["missing"] is None
    assert "I3D_16.pth.tar" in networks["dti3d"]["missing"]
    assert networks["insightface"]["sources"][0]["licence"] == "for non-commercial research only"
    refused = CliRunner().invoke(app, ["pull", "dti3d"])
    assert isinstance(refused.exception, UserError)
    assert "dti3d is not on the hub" in str(refused.exception)
