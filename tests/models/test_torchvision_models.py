"""The networks of torchvision and timm behind the repository's interface, and their weights."""
import copy
import hashlib
import http.server
import io
import signal
import sys
import threading
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
import torchvision

from distiller_zoo import METHODS, MethodError, Setup
from models import CheckpointError, ModelError, build, check_name, load_model
from models._wrapped import Wrapped
from tests.support import scripts

SMALL = "torchvision:shufflenet_v2_x0_5"


def images(size=64, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- the interface ---


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_wrapped_network_is_torchvisions_to_the_last_bit(name):
    """In evaluation and in training, by its own names of the weights."""
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name, num_classes=6)
    network = build(f"torchvision:{name}", 6)
    assert list(network.state_dict()) == list(plain.state_dict())
    network.load_state_dict(plain.state_dict(), strict=True)
    x = images(32)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), plain.eval()(x))
        torch.manual_seed(1)
        expected = plain.train()(x)
        torch.manual_seed(1)
        assert torch.equal(network.train()(x), expected)
    assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))  # the BN statistics too


def test_the_features_of_a_resnet_are_those_of_its_layers():
    network = build("torchvision:resnet18", 6).eval()
    inner = network.network
    with torch.no_grad():
        out = network(images(), named=True)
        x = stem = inner.maxpool(F.relu(inner.bn1(inner.conv1(images()))))
        stages = [x := layer(x) for layer in (inner.layer1, inner.layer2, inner.layer3, inner.layer4)]
        assert torch.equal(out.stem, stem) and all(map(torch.equal, out.stages, stages))
        assert len(out.stages) == 4 and len(out.preacts) == 4
        assert torch.equal(out.pooled, x.mean((2, 3), keepdim=True).flatten(1))
        assert torch.equal(inner.fc(out.pooled), out.logits)
    for stage, preact in zip(out.stages, out.preacts, strict=True):
        assert preact.min() < 0 and torch.equal(stage, F.relu(preact))


@pytest.mark.parametrize("name, shapes, stem", [
    ("torchvision:mobilenet_v2", [(24, 16), (32, 8), (96, 4), (320, 2)], (16, 32)),
    ("torchvision:shufflenet_v2_x0_5", [(48, 8), (96, 4), (192, 2)], (24, 16)),
    ("timm:test_resnet", [(32, 16), (48, 8), (192, 4), (96, 2)], (32, 16)),
    ("timm:test_convnext", [(24, 16), (32, 8), (48, 4), (64, 2)], (24, 16)),
])
def test_stages_of_other_families(name, shapes, stem):
    network = build(name, 6).eval()
    with torch.no_grad():
        out = network(images(), named=True)
        head = network.network.get_submodule(network.head)
        assert torch.equal(head(out.pooled), out.logits)
    assert [tuple(f.shape[1:3]) for f in (out.stem, *out.stages)] == [stem, *shapes]
    assert len(network.feature_parameters()) == len(list(network.parameters())) - len(list(head.parameters()))


def test_features_carry_gradients_and_nothing_is_overwritten():
    network = build("timm:test_resnet", 6).train()
    out = network(images(), named=True)
    sum(f.square().mean() for f in (*out.stages, *out.preacts, out.stem, out.pooled)).backward()
    assert all(p.grad is not None for p in network.feature_parameters())
    assert all(torch.equal(s, F.relu(p)) for s, p in zip(out.stages, out.preacts, strict=True))


def test_the_pooled_vector_is_taken_before_the_dropout():
    network = build("torchvision:mobilenet_v3_small", 6).train()
    torch.manual_seed(0)
    pooled = network(images(), named=True).pooled
    assert (pooled == 0).float().mean() < 0.05  # a dropout of one in five would show


def test_a_copy_has_hooks_of_its_own():
    network = build(SMALL, 6).eval()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
        out, other = network(images(), named=True), twin(images(), named=True)
    assert not torch.equal(out.pooled, other.pooled) and not network.seen and not twin.seen
    assert torch.equal(network(images(), named=True).stem, out.stem)


# --- what a network does not offer is refused in one line ---


def setup_of(student, teacher):
    with torch.no_grad():
        outputs = [network.eval()(images(), named=True) for network in (student, teacher)]
    return Setup(*outputs, student.name, teacher.name, torch.arange(12) % 6, 6)


@pytest.mark.parametrize("method, says", [("abound", "abound reads preacts"), ("hint", "hint reads stages and stem"),
                                          ("similarity", "similarity reads stages"), ("crd", "crd reads pooled")])
def test_a_method_refuses_a_network_without_what_it_reads(method, says):
    # The first has no ReLU at its stages' ends, the second no maps, the third no linear layer.
    names = {"abound": "timm:test_convnext", "crd": "torchvision:squeezenet1_1"}
    teacher, student = build(names.get(method, "timm:test_vit"), 6), build("resnet8", 6)
    setup = setup_of(student, teacher)
    with pytest.raises(MethodError, match=says) as refused:
        METHODS[method](setup, Namespace(beta=1.0, alpha=0.0))
    assert teacher.name in str(refused.value) and "\n" not in str(refused.value)
    METHODS["dkd"](setup, Namespace(beta=1.0, alpha=1.0, kd_T=4.0, logit_std="off"))


def test_a_network_of_a_fixed_size_says_so():
    network = build("timm:test_maxvit", 6).eval()
    with pytest.raises(ModelError, match="timm:test_maxvit does not take images of 32×32 pixels"):
        network(images(32))


@pytest.mark.parametrize("name, says", [
    ("torchvision:resnet19", "torchvision offers no network 'resnet19' here; did you mean torchvision:resnet1"),
    ("torchvision:googlenet", "offers no network 'googlenet'"),
    ("timm:test_resnt", "did you mean timm:test_resnet"),
    ("timm:", "timm offers no network ''"),
    ("resnet19", "did you mean resnet14 or resnet110 or"),
    ("zoo:resnet18", "choose from MobileNetV1, "),
    ("torchvision:../resnet18", "offers no network"),
])
def test_unknown_names_are_refused_with_those_alike(name, says):
    with pytest.raises(ModelError) as refused:
        check_name(name)
    assert says in str(refused.value)


def test_a_missing_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="pip install timm"):
        check_name("timm:resnet18")


# --- checkpoints ---


@pytest.mark.parametrize("name", [SMALL, "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1",
                                  "timm:test_resnet.r160_in1k"])
def test_a_checkpoint_written_here_loads(tmp_path, name):
    """Also of networks with several linear layers, or none, whose number of classes the file must say."""
    network = build(name, 6)
    torch.save({"model": network.state_dict(), "model_name": name, "num_classes": 6}, tmp_path / "a.pth")
    loaded, checkpoint = load_model(tmp_path / "a.pth", num_classes=6)
    assert loaded.name == name and checkpoint.num_classes == 6 and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images()), network.eval()(images()))


def test_a_state_dict_of_torchvision_loads_by_its_folders_name(tmp_path):
    folder = tmp_path / f"{SMALL}_mine"
    folder.mkdir()
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=6).state_dict(), folder / "a.pth")
    network, checkpoint = load_model(folder / "a.pth")
    assert network.name == SMALL and checkpoint.num_classes == 6


# --- published weights, from a server of our own ---


@pytest.fixture
def server():
    """(the address, the files it serves by path); headers as the Hugging Face hub gives them."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is not None:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def file_of(network):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


def test_torchvisions_weights_are_fetched_checked_and_kept(server, hub, monkeypatch):
    address, files = server
    plain = torchvision.models.shufflenet_v2_x0_5()
    content = file_of(plain)
    name = f"shufflenet-{hashlib.sha256(content).hexdigest()[:10]}.pth"
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(weights, "url", f"{address}/{name}")

    with pytest.raises(ModelError, match=r"not available \(HTTP Error 404.*put http://.* into the folder hub"):
        load_model(SMALL)
    files[f"/{name}"] = b"something else"
    with pytest.raises(ModelError, match="invalid hash"):
        load_model(SMALL)
    files[f"/{name}"] = content
    network, checkpoint = load_model(SMALL, num_classes=1000)
    assert isinstance(network, Wrapped) and network.name == checkpoint.model_name == SMALL and not network.training
    assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))
    with pytest.raises(CheckpointError, match="has 1000 classes, 10 are expected"):
        load_model(SMALL, num_classes=10)
    files.clear()  # it is kept in torch.hub's folder
    assert load_model(SMALL)[1].num_classes == 1000 and (hub / name).exists()
    (hub / name).write_bytes(content[:1000])
    with pytest.raises(ModelError, match="in place of a damaged file"):
        load_model(SMALL)


def test_the_imagenet_teachers_are_the_published_ones(hub, monkeypatch):
    """The weights of the tables, not torchvision's newest (for ResNet50 another training)."""
    asked = []

    def ask(url, **_):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", ask)
    for name in ("resnet34", "resnet50"):
        with pytest.raises(ModelError, match="not available"):
            load_model(f"torchvision:{name}")
    assert [url.rpartition("/")[2] for url in asked] == ["resnet34-b627a593.pth", "resnet50-0676ba61.pth"]


def test_older_names_of_densenets_weights_are_understood():
    from models._torchvision import _today
    assert _today("features.denseblock1.denselayer1.norm.1.weight") == "features.denseblock1.denselayer1.norm1.weight"
    assert _today("features.denseblock3.denselayer24.conv.2.weight") == "features.denseblock3.denselayer24.conv2.weight"
    assert _today("features.norm5.bias") == "features.norm5.bias"


def test_timms_weights_are_fetched(server, tmp_path, monkeypatch):
    import huggingface_hub.constants as hub_constants
    import safetensors.torch
    import timm

    address, files = server
    plain = timm.create_model("test_resnet")
    files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = safetensors.torch.save(plain.state_dict())
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    network, checkpoint = load_model("timm:test_resnet")
    assert network.name == "timm:test_resnet" and checkpoint.num_classes == 1000
    assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))
    files.clear()  # it is kept in the hub's folder
    assert load_model("timm:test_resnet.r160_in1k")[1].num_classes == 1000


# --- the scripts ---


def test_a_run_of_wrapped_networks_is_resumed(tmp_path):
    torch.save({"model": build(SMALL, 10).state_dict(), "model_name": SMALL}, tmp_path / "teacher.pth")
    command = ["train_student.py", "--path_t", tmp_path / "teacher.pth", "--model_s", SMALL, "--distill", "similarity",
               "--dataset", "digits", "--epochs", 2, "--batch_size", 256, "--save_dir", tmp_path]
    process = scripts.Process(*command)
    process.until("train 1/2")
    process.signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.stderr
    assert "continuing after epoch 1" in scripts.succeed(*command).stdout
    folder = scripts.only(tmp_path / "student_model")
    assert folder.name.startswith(f"S:{SMALL}_T:{SMALL}_digits_similarity_")
    assert [set(line["losses"]) for line in scripts.read_log(folder)] == [{"ce", "similarity"}] * 2
    assert load_model(folder / f"{SMALL}_last.pth", num_classes=10)[0].name == SMALL


def test_a_teacher_that_does_not_take_the_images_is_refused_before_anything_is_written(tmp_path):
    process = scripts.run("train_teacher.py", "--model", "torchvision:alexnet", "--dataset", "digits",
                          "--save_dir", tmp_path)
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert "torchvision:alexnet does not take images of 32×32 pixels" in process.stderr
    assert process.stdout == "" and not list(tmp_path.iterdir())
