# SPDX-License-Identifier: Apache-2.0
import hashlib
import importlib
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from gluon_resnet import _before_mxnet, cpu

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"([\w-]+)==[\w.]+(; python_version [<>=]+ \"3\.\d+\")?")
# The text at https://www.apache.org/licenses/LICENSE-2.0.txt.
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def requirement_lines(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def package_name(line):
    return re.match(r"[\w-]+", line).group()


@pytest.mark.parametrize(
    "name",
    ["requirements.txt", "requirements-dev.txt", "requirements-export.txt"],
)
def test_every_requirement_is_pinned(name):
    for line in requirement_lines(name):
        assert PINNED.fullmatch(line)


def test_cuda_requirements_are_pinned_or_constrained_by_the_cpu_ones():
    assert "-c requirements.txt\n" in (ROOT / "requirements-cu112.txt").read_text()
    constrained = {package_name(line) for line in requirement_lines("requirements.txt")}
    unpinned = {
        package_name(line)
        for line in requirement_lines("requirements-cu112.txt")
        if not PINNED.fullmatch(line)
    }
    assert unpinned == constrained - {"mxnet"}


def test_cuda_requirements_name_a_wheel_for_every_preloaded_library():
    names = {package_name(line) for line in requirement_lines("requirements-cu112.txt")}
    folders = {path.split("/")[0] for path in _before_mxnet.CUDA_LIBRARIES}
    wheels = {f"nvidia-{folder.replace('_', '-')}-cu11" for folder in folders}
    assert wheels <= names


def test_numpy_gets_the_name_that_mxnet_needs(monkeypatch):
    monkeypatch.delitem(vars(numpy), "bool", raising=False)
    _before_mxnet.add_numpy_names()
    assert vars(numpy)["bool"] is bool


def test_numpy_2_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(numpy, "__version__", "2.1.0")
    with pytest.raises(ImportError) as refusal:
        _before_mxnet.check_packages()
    assert str(refusal.value) == (
        "NumPy 2.1.0 is installed, but MXNet needs NumPy 1: "
        "run `pip install -r requirements.txt`"
    )


@pytest.mark.parametrize("spec", [None, ModuleSpec("mxnet", None)])
def test_missing_mxnet_is_told_in_one_line(monkeypatch, spec):
    monkeypatch.setattr(_before_mxnet, "find_spec", lambda name: spec)
    with pytest.raises(ImportError) as refusal:
        _before_mxnet.check_packages()
    assert str(refusal.value) == (
        "mxnet is not installed: run `pip install -r requirements.txt`"
    )


def test_missing_library_is_told_with_its_remedy_in_one_line():
    with pytest.raises(ImportError) as refusal:
        _before_mxnet.load_library("libabsent.so.1", "install it")
    assert str(refusal.value) == (
        "MXNet cannot be loaded (libabsent.so.1: cannot open shared object file: "
        "No such file or directory): install it"
    )


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Return what is loaded where MXNet and all of NVIDIA's wheels lie in tmp_path."""
    for name in _before_mxnet.CUDA_LIBRARIES:
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True)
        path.touch()
    mxnet = ModuleSpec("mxnet", None, origin=str(tmp_path / "mxnet" / "__init__.py"))
    nvidia = ModuleSpec("nvidia", None, is_package=True)
    nvidia.submodule_search_locations.append(str(tmp_path / "nvidia"))
    monkeypatch.setattr(
        _before_mxnet, "find_spec", {"mxnet": mxnet, "nvidia": nvidia}.get
    )
    paths = []
    monkeypatch.setattr(
        _before_mxnet, "load_library", lambda path, remedy: paths.append(path)
    )
    return paths


def test_cuda_libraries_are_loaded_for_mxnet_cu112(tmp_path, loaded):
    (tmp_path / "mxnet_cu112-1.9.1.dist-info").mkdir()
    _before_mxnet.load_cuda_libraries()
    wheels = [str(tmp_path / "nvidia" / name) for name in _before_mxnet.CUDA_LIBRARIES]
    assert loaded == ["libcuda.so.1", *wheels]


def test_cuda_libraries_are_left_alone_for_the_cpu_build(tmp_path, loaded):
    (tmp_path / "mxnet-1.9.1.dist-info").mkdir()
    _before_mxnet.load_cuda_libraries()
    assert loaded == []


def test_installation_is_prepared_when_mxnet_is_first_asked_for(monkeypatch):
    preparer, prepared = _before_mxnet._Preparer(), []
    monkeypatch.setattr(_before_mxnet, "prepare", lambda: prepared.append("once"))
    monkeypatch.setattr(sys, "meta_path", [preparer])
    for name in ("json", "mxnet.gluon", "mxnet", "mxnet"):
        for finder in list(sys.meta_path):
            assert finder.find_spec(name) is None
    assert prepared == ["once"]


def test_installation_that_lacks_something_is_refused_each_time(monkeypatch):
    def refuse():
        raise ImportError("numpy is not installed")

    preparer = _before_mxnet._Preparer()
    monkeypatch.setattr(_before_mxnet, "prepare", refuse)
    monkeypatch.setattr(sys, "meta_path", [preparer])
    for _ in range(2):
        with pytest.raises(ImportError, match=r"^numpy is not installed$"):
            preparer.find_spec("mxnet")


def test_import_of_the_package_costs_nothing_heavy():
    code = (
        "import sys, gluon_resnet, gluon_resnet.models, gluon_resnet.weights\n"
        "heavy = {'mxnet', 'numpy', 'cv2', 'PIL', 'matplotlib', 'requests', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from gluon_resnet import *\n"
        "assert set(dir(gluon_resnet)) <= set(globals())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "package, name",
    [
        ("gluon_resnet", "preprocess"),
        ("gluon_resnet", "postprocess"),
        ("gluon_resnet.models", "complexity"),
    ],
)
def test_function_keeps_its_name_from_its_module(package, name):
    module = importlib.import_module(f"{package}.{name}")
    package = importlib.import_module(package)
    assert getattr(package, name) is getattr(module, name)
    setattr(package, name, module)  # as the import system does
    assert getattr(package, name) is getattr(module, name)


@pytest.mark.parametrize("name", ["gluon_resnet", "gluon_resnet.weights"])
def test_every_public_name_is_there(name):
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)
    for public in package.__all__:
        assert not isinstance(getattr(package, public), ModuleType)
    with pytest.raises(AttributeError):
        package.absent  # noqa: B018


def test_threads_of_one_core_are_counted_once(tmp_path):
    for number, siblings in enumerate(["0,4", "1", "2-3", "2-3", "0,4"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cpu.physical_cores({0, 1, 2, 3, 4}, tmp_path) == 3
    assert cpu.physical_cores({4, 3}, tmp_path) == 2
    # Where Linux does not say it, each is taken for a core.
    assert cpu.physical_cores({7, 8}, tmp_path) == 2


def test_caches_are_bounded_unless_the_user_set_them():
    environment = {}
    _before_mxnet.bound_caches(environment)
    assert environment == {"MXNET_MKLDNN_CACHE_NUM": "256"}
    environment = {"MXNET_MKLDNN_CACHE_NUM": "-1"}
    _before_mxnet.bound_caches(environment)
    assert environment == {"MXNET_MKLDNN_CACHE_NUM": "-1"}


@pytest.mark.slow
def test_memory_with_ever_new_shapes_is_bounded():
    program = """
import random, resource, mxnet as mx, gluon_resnet
net = gluon_resnet.create_model("cifar_resnet20_v1", num_classes=10)
def mebibytes_after(shapes):
    for _ in range(shapes):
        height, width = random.randrange(32, 160), random.randrange(32, 160)
        net(mx.nd.zeros((1, 3, height, width))).wait_to_read()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
random.seed(0)
print(-mebibytes_after(40) + mebibytes_after(60))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "MXNET_MKLDNN_CACHE_NUM"},
    )
    assert float(run.stdout) < 80  # 150 without a bound


def test_openmp_is_set_up_unless_the_user_did():
    environment = {}
    _before_mxnet.set_up_openmp(environment, 6)
    assert environment == {
        "OMP_NUM_THREADS": "6",
        "OMP_WAIT_POLICY": "ACTIVE",
        "GOMP_SPINCOUNT": "1000",
    }
    users = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = dict(users)
    _before_mxnet.set_up_openmp(environment, 6)
    assert environment == users


def test_openmp_has_as_many_threads_as_there_are_cores():
    code = (
        "import gluon_resnet.inference.form\n"
        "from gluon_resnet import cpu\n"
        "from gluon_resnet.inference import openmp\n"
        "threads = openmp.max_threads()\n"
        "assert threads == cpu.physical_cores(cpu.allowed_cpus()), threads\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def never():
    raise AssertionError("Linux was asked")


@pytest.mark.parametrize(
    "machine, flags, ask, said",
    [
        ("x86_64", _before_mxnet.AMX_FLAGS, lambda: True, "AMX is on"),
        (
            "x86_64",
            _before_mxnet.AMX_FLAGS,
            lambda: False,
            "AMX is off: Linux does not grant the tile registers",
        ),
        (
            "x86_64",
            {"avx512f", "amx_tile"},
            never,
            "AMX is off: the processor has no amx_bf16, amx_int8",
        ),
        ("aarch64", _before_mxnet.AMX_FLAGS, never, "AMX is off: not on aarch64"),
    ],
)
def test_amx_is_on_only_where_it_is_granted(machine, flags, ask, said):
    environment = {}
    assert _before_mxnet.switch_on_amx(machine, flags, environment, ask) == said
    on = {"DNNL_MAX_CPU_ISA": "AVX512_CORE_AMX"}
    assert environment == (on if said == "AMX is on" else {})


def test_users_own_choice_of_instructions_stays():
    # It may name AMX, which without the permission kills the process.
    asked = []
    environment = {"DNNL_MAX_CPU_ISA": "AVX2"}
    said = _before_mxnet.switch_on_amx(
        "x86_64",
        _before_mxnet.AMX_FLAGS,
        environment,
        lambda: asked.append("tiles") or True,
    )
    assert said == "AMX is left to DNNL_MAX_CPU_ISA=AVX2"
    assert (asked, environment) == (["tiles"], {"DNNL_MAX_CPU_ISA": "AVX2"})


@pytest.mark.skipif(
    sys.platform != "linux" or "amx_tile" in cpu.cpu_flags(),
    reason="with AMX the answer is the kernel's",
)
def test_linux_refuses_tiles_that_the_processor_has_not():
    assert not _before_mxnet.ask_for_tiles()


def test_processor_flags_are_linuxs_words(tmp_path):
    (tmp_path / "cpuinfo").write_text("model\t: 1\nflags\t\t: fpu amx_tile\n\n")
    assert "amx_tile" in cpu.cpu_flags(tmp_path / "cpuinfo")
    assert cpu.cpu_flags(tmp_path / "none") == set()


def test_license_is_apache_2():
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2_SHA256
